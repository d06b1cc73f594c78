"""Pure functions from arrays to arrays: no flag, file, clock or print."""
