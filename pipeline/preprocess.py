"""The host part of preprocessing: decode and resize to uint8 RGB.

Training, calibration, verification and inference share this one function, so that a model sees in production what it
saw in training. Everything after it (channel order, mean, scale) is inside the graph: ``export.preprocessing``.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import DataError

Resize = Literal["stretch", "crop", "imagenet", "pad"]
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs, enforced instead of warned about
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


class ImageError(DataError):
    """An image that cannot be decoded. The message holds the reason, not the path."""


def decode(data: bytes) -> Image.Image:
    """Decode an image file completely, apply its EXIF orientation, convert to 8-bit RGB.

    Greyscale is repeated over the channels, transparency is laid on black, 16-bit greyscale is scaled to 8 bit, of an
    animation the first frame is taken.

    Args:
        data: the file's bytes, any format that Pillow reads.

    Raises:
        ImageError: not an image, truncated, or more than 179 megapixels.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,} allowed")
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image that Pillow can read" if data else "the file is empty") from error
    except Image.DecompressionBombError as error:
        raise ImageError(str(error)) from error
    except Exception as error:  # Pillow's plugins raise many types on damaged files
        raise ImageError(f"{type(error).__name__}: {error}") from error


def resize_image(image: Image.Image, size: tuple[int, int], mode: Resize = "stretch") -> np.ndarray:
    """Resize with Pillow's antialiased bilinear filter.

    Args:
        image: RGB.
        size: (height, width) in pixels.
        mode: "stretch" to the size; "crop": the largest centred part of the size's shape, then resize; "imagenet":
            the short side to 8/7 of the size (256 for 224), then the centre; "pad": shrunk to fit if it is larger,
            never enlarged, black around it.

    Returns:
        uint8 of shape (height, width, 3).
    """
    height, width = size
    if mode == "crop":
        resized = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    elif mode == "imagenet":
        resized = _centre(image, width, height)
    elif mode == "pad":
        resized = _pad(image, width, height)
    elif image.size == (width, height):
        resized = image
    else:
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = max(width / image.width, height / image.height) * 8 / 7
    size = round(image.width * scale), round(image.height * scale)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


def _pad(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(1.0, width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    inner = image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
    result = Image.new("RGB", (width, height))
    result.paste(inner, ((width - size[0]) // 2, (height - size[1]) // 2))
    return result


def load_image(source: Path | bytes, size: tuple[int, int], mode: Resize = "stretch") -> np.ndarray:
    """Decode and resize one image: uint8 of shape (height, width, 3).

    Raises:
        ImageError: the file cannot be read or decoded; the message says why.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    return resize_image(decode(data), size, mode)


def array_to_image(pixels: np.ndarray) -> Image.Image:
    """An RGB image from a uint8 array of shape (height, width) or (height, width, 1 or 3)."""
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return array_to_image((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image.convert("RGB")
