"""JPEGs that Pillow does not write: other frame headers, restart markers, YCCK, arithmetic coding."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image


def frame_changed(
    data: bytes,
    marker: int | None = None,
    bits: int | None = None,
    layers: int | None = None,
    size: tuple[int, int] | None = None,
) -> bytes:
    """A baseline JPEG whose frame header says something else; size is (height, width)."""
    changed = bytearray(data)
    start = data.index(b"\xff\xc0")
    changed[start + 1] = marker or 0xC0
    changed[start + 4] = bits or 8
    if size:
        changed[start + 5 : start + 9] = struct.pack(">HH", *size)
    if layers:
        changed[start + 9] = layers
    return bytes(changed)


def scan_of(data: bytes) -> tuple[int, int]:
    """First byte of a baseline JPEG's entropy-coded data, and the place of its end marker."""
    start = data.index(b"\xff\xda")
    return start + 2 + int.from_bytes(data[start + 2 : start + 4], "big"), data.rindex(b"\xff\xd9")


def restart_markers(image: Image.Image, **options: object) -> bytes:
    """A JPEG with a restart marker after every block row's fourth block."""
    image.save(file := io.BytesIO(), "JPEG", restart_marker_blocks=4, **options)
    return file.getvalue()


def ycck(size: tuple[int, int] = (64, 96), **options: object) -> bytes:
    """A four-layer JPEG whose first three layers are said to be YCbCr, as Photoshop writes; size is (height, width)."""
    noise = np.random.default_rng(5).integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "CMYK").resize(size[::-1], Image.Resampling.BICUBIC)
    image.save(file := io.BytesIO(), "JPEG", **options)
    data = bytearray(file.getvalue())
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def arithmetic(height: int = 16, width: int = 24) -> bytes:
    """A grey JPEG of arithmetic coding; any bytes are a valid code of some picture."""
    tables = b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([8] * 64)
    frame = b"\xff\xc9" + struct.pack(">HBHHB", 11, 8, height, width, 1) + bytes([1, 0x11, 0])
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([1, 0, 0, 63, 0])
    return b"\xff\xd8" + tables + frame + scan + bytes([1, 2, 3, 4]) + b"\xff\xd9"
