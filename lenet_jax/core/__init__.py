"""Arrays in, arrays out: no flag, file, clock or print."""
