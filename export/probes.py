"""Pictures that make a network show what it computes: made here, equal on every machine.

Photographs would do, but an export must be checked where there are none. Noise alone does not do: it averages out
in the first pooling, all its pictures look alike to a network, and a part that only differs on large bright or dark
areas, or only for one channel, never differs.
"""

from __future__ import annotations

import numpy as np


def probe_pixels(height: int, width: int, count: int = 16, seed: int = 0) -> np.ndarray:
    """Returns uint8 (count, height, width, 3) RGB pictures, each of another kind, from 0 to 255.

    Blobs of several sizes, coloured gradients, stripes, a dark and a bright one, and noise; no two of one mean. The
    first pictures do not depend on `count`.

    Args:
        height: In pixels.
        width: In pixels.
        count: How many. Defaults to 16.
        seed: Of everything random. Defaults to 0.
    """
    pictures = np.empty((count, height, width, 3), dtype=np.uint8)
    for index in range(count):
        random = np.random.default_rng((seed, index))
        picture = _KINDS[index % len(_KINDS)](random, height, width)
        low, high = np.sort(random.uniform(0.0, 1.0, (2, 3)), axis=0)
        if index % 4 == 0:  # the whole range, as a photograph has it
            low, high = np.zeros(3), np.ones(3)
        pictures[index] = np.rint(255 * (low + picture * (high - low)))
    return pictures


def _blobs(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth colour patches, a few to a side."""
    cells = int(random.integers(2, 7))
    coarse = random.uniform(0.0, 1.0, (cells + 1, cells + 1, 3))
    y, x = np.linspace(0, cells, height), np.linspace(0, cells, width)
    rows, columns = np.minimum(y.astype(int), cells - 1), np.minimum(x.astype(int), cells - 1)
    down, right = (y - rows)[:, None, None], (x - columns)[None, :, None]
    upper = coarse[rows][:, columns] * (1 - right) + coarse[rows][:, columns + 1] * right
    lower = coarse[rows + 1][:, columns] * (1 - right) + coarse[rows + 1][:, columns + 1] * right
    return np.asarray(upper * (1 - down) + lower * down)


def _gradient(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Each channel rises in another direction."""
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    angle = random.uniform(0, 2 * np.pi, 3)
    ramp = x * np.cos(angle) + y * np.sin(angle)
    low, high = ramp.min(axis=(0, 1)), ramp.max(axis=(0, 1))
    return np.asarray((ramp - low) / np.maximum(high - low, 1e-9))


def _stripes(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Hard edges, some pixels apart, in two colours."""
    period = random.integers(2, max(3, min(height, width) // 2) + 1, 3)
    y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    return ((x * random.integers(0, 2, 3) + y) // period % 2).astype(float)


def _spots(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A few bright discs on black."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.zeros((height, width, 3))
    for _ in range(4):
        top, left, radius = random.uniform(0, height), random.uniform(0, width), min(height, width) / 5
        picture[(y - top) ** 2 + (x - left) ** 2 < radius**2] = random.uniform(0.2, 1.0, 3)
    return picture


def _noise(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Every pixel for itself."""
    return random.uniform(0.0, 1.0, (height, width, 3))


_KINDS = (_blobs, _gradient, _spots, _stripes, _noise)
