"""What the tables of the README were measured with. `make bench` runs all of them."""
