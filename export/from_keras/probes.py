"""Generated images that show what a network computes, equal on every machine. NumPy only."""

import numpy as np


def probe_pixels(height: int, width: int, count: int = 16, seed: int = 0) -> np.ndarray:
    """Return generated uint8 RGB images (count, height, width, 3) of several kinds, with values from 0 to 255.

    There are blobs of several sizes, coloured gradients, stripes, bright discs on black, and noise; their means differ.
    The first images do not depend on `count`, and are equal on every machine.

    Args:
        height: In pixels.
        width: In pixels.
        count: The number of images. Defaults to 16.
        seed: Seed of the random numbers. Defaults to 0.
    """
    images = np.empty((count, height, width, 3), dtype=np.uint8)
    for index in range(count):
        random = np.random.default_rng((seed, index))
        image = _KINDS[index % len(_KINDS)](random, height, width)
        low, high = np.sort(random.uniform(0.0, 1.0, (2, 3)), axis=0)
        if index % 4 == 0:  # the whole range, as in a photo
            low, high = np.zeros(3), np.ones(3)
        images[index] = np.rint(255 * (low + image * (high - low)))
    return images


def _blobs(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return smooth colour patches, a few per side."""
    cells = int(random.integers(2, 7))
    coarse = random.uniform(0.0, 1.0, (cells + 1, cells + 1, 3))
    y, x = np.linspace(0, cells, height), np.linspace(0, cells, width)
    rows, columns = np.minimum(y.astype(int), cells - 1), np.minimum(x.astype(int), cells - 1)
    down, right = (y - rows)[:, None, None], (x - columns)[None, :, None]
    upper = coarse[rows][:, columns] * (1 - right) + coarse[rows][:, columns + 1] * right
    lower = coarse[rows + 1][:, columns] * (1 - right) + coarse[rows + 1][:, columns + 1] * right
    return np.asarray(upper * (1 - down) + lower * down)


def _gradient(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a gradient in a different direction per channel."""
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    angle = random.uniform(0, 2 * np.pi, 3)
    ramp = x * np.cos(angle) + y * np.sin(angle)
    low, high = ramp.min(axis=(0, 1)), ramp.max(axis=(0, 1))
    return np.asarray((ramp - low) / np.maximum(high - low, 1e-9))


def _stripes(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return stripes with hard edges in two colours."""
    period = random.integers(2, max(3, min(height, width) // 2) + 1, 3)
    y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    return ((x * random.integers(0, 2, 3) + y) // period % 2).astype(float)


def _spots(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a few bright discs on black."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.zeros((height, width, 3))
    for _ in range(4):
        top, left, radius = random.uniform(0, height), random.uniform(0, width), min(height, width) / 5
        image[(y - top) ** 2 + (x - left) ** 2 < radius**2] = random.uniform(0.2, 1.0, 3)
    return image


def _noise(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return independent random pixels."""
    return random.uniform(0.0, 1.0, (height, width, 3))


_KINDS = (_blobs, _gradient, _spots, _stripes, _noise)
