"""A trained network elsewhere."""
