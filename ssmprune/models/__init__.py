"""Backbones: each a loop over blocks, equal to the official model of its name."""
