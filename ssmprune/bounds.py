"""How large numbers may be that people give: what every generator, tensor and loop can take."""

from __future__ import annotations

MOST_SEED = 2**32 - 1
"""The most that numpy and scipy seed a generator with."""

MOST_IMAGES = 2**20
"""Images per batch."""

MOST_PIXELS = 2**14
"""On each side of an image."""

MOST_STEPS = 10**9
"""Training steps."""

MOST_EPOCHS = 10**6

MOST_WORKERS = 10**4

MOST_TRIALS = 10**6
