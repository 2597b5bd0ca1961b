"""Which policies a search may propose."""
