"""Resizes images to the model's input, with memory bounded for pictures of any proportions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image

Resize = Literal["stretch", "crop", "imagenet", "pad"]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
SCRATCH = 2**24  # pixels that a `Turned` picture may hold between its two passes
MOST_WHOLE = 8  # times the target side: up to here "imagenet" resizes a whole side, bit-identical to torchvision
_BILINEAR = Image.Resampling.BILINEAR


class Turned:
    """A stored picture whose rows stand upright as columns: a camera's portrait, resized without turning all of it.

    Pillow resizes rows, rounds to 8 bits, and resizes columns. Here the same two passes run along the stored picture's
    other axis, and only the small result is turned, so the pixels are those of the turned picture to the bit.

    Args:
        stored: the picture as its file holds it.
        flipped: whether the upright picture is the transposed one upside down, instead of the transposed one.
    """

    def __init__(self, stored: Image.Image, flipped: bool) -> None:
        self._stored = stored
        self._flipped = flipped
        self.width, self.height = stored.height, stored.width
        self.mode = stored.mode

    def resize(self, size: tuple[int, int], resample: Image.Resampling, box: Box | None = None) -> Image.Image:
        """Return what `PIL.Image.Image.resize` returns for the upright picture, rows first."""
        width, height = size
        left, top, right, bottom = box or (0, 0, self.width, self.height)
        part = self._stored
        if width != self.width or (left, right) != (0, self.width):
            part = part.resize((self.height, width), resample, (0, left, self.height, right))
        if self._flipped:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if height != self.height or (top, bottom) != (0, self.height):
            part = part.resize((height, width), resample, (top, 0, bottom, width))
        return part.transpose(Image.Transpose.TRANSPOSE)


def resize_image(image: Image.Image | Turned, size: tuple[int, int], mode: Resize = "stretch") -> np.ndarray:
    """Resize with Pillow's antialiased bilinear filter; the memory is bounded for images of any proportions.

    Args:
        image: RGB, or 8-bit greyscale, which gives the same pixels as if it were converted to RGB before.
        size: (height, width) in pixels.
        mode: "stretch" to the size; "crop": the largest centred part with the target's aspect ratio, then resize;
            "imagenet": the short side to 8/7 of the size (256 for 224), then the centre; "pad": shrink to fit if it is
            larger, never enlarge, black around it. Defaults to "stretch".

    Returns:
        uint8 of shape (height, width, 3), a copy.
    """
    height, width = size
    modes: dict[str, Callable[[Image.Image | Turned, int, int], Image.Image]] = {
        "stretch": _resized, "crop": _crop, "imagenet": _centre, "pad": _pad,
    }  # fmt: skip
    small = modes[mode](image, width, height)
    return np.array(small if small.mode == "RGB" else small.convert("RGB"), dtype=np.uint8)


def _resized(image: Image.Image | Turned, width: int, height: int, box: Box | None = None) -> Image.Image:
    """Resize in two passes, each of which rounds: columns first where a picture shrinks most in height, else rows.

    This is the order of Pillow 13, here for every version: before, Pillow took rows first, which fills the memory for a
    tall, narrow picture.
    """
    left, top, right, bottom = box or (0, 0, image.width, image.height)
    if height < image.height and image.height - height > 2 * (image.width - width):
        image = image.resize((image.width, height), _BILINEAR, (0, top, image.width, bottom))
        top, bottom = 0, height
    return image.resize((width, height), _BILINEAR, (left, top, right, bottom))


def _crop(image: Image.Image | Turned, width: int, height: int) -> Image.Image:
    """What `PIL.ImageOps.fit` gives, to the bit."""
    ratio = width / height
    across: float = image.width
    down: float = image.height
    if across / down > ratio:
        across = ratio * down
    elif across / down < ratio:
        down = across / ratio
    left, top = (image.width - across) * 0.5, (image.height - down) * 0.5
    return _resized(image, width, height, (left, top, left + across, top + down))


def _centre(image: Image.Image | Turned, width: int, height: int) -> Image.Image:
    """The centre of the picture at 8/7 of the target size; nothing far outside that centre is computed."""
    scale = max(width / image.width, height / image.height) * 8 / 7
    whole = round(image.width * scale), round(image.height * scale)
    left, right = _computed(whole[0], width)
    top, bottom = _computed(whole[1], height)
    across, down = image.width / whole[0], image.height / whole[1]
    box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    part = _resized(image, right - left, bottom - top, box)
    x, y = (whole[0] - width) // 2 - left, (whole[1] - height) // 2 - top
    return part.crop((x, y, x + width, y + height))


def _computed(whole: int, target: int) -> tuple[int, int]:
    """The range of a resized side that is computed to get its centre.

    It is the whole side up to `MOST_WHOLE` times the target: Pillow keeps the edges of a part in 32 bits, and a part
    may take its passes in the other order, so that values differ by one grey level from the same part of the whole; in
    noise one in four.
    """
    start = (whole - target) // 2
    return (0, whole) if whole <= MOST_WHOLE * target else (start, start + target)


def _pad(image: Image.Image | Turned, width: int, height: int) -> Image.Image:
    scale = min(1.0, width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    result = Image.new(image.mode, (width, height))
    result.paste(_resized(image, *size), ((width - size[0]) // 2, (height - size[1]) // 2))
    return result
