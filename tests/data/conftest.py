"""Folders of small images, and what is read from them."""

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def write_images():
    """Writes `count` random images into a class folder; `first` numbers, and seeds, the first."""

    def write(folder, count, first=0, size=(50, 40)):
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")

    return write


@pytest.fixture
def gather():
    """Images and labels of a set, each as one tensor."""

    def gather(image_set):
        images, labels = zip(*image_set.loader, strict=True)
        return torch.cat(images), torch.cat(labels)

    return gather
