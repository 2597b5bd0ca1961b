"""A search from start to end, and its directory."""
