"""The host part of preprocessing: decode and resize images to uint8 RGB.

Training, calibration, verification and inference decode by the `DecodeSpec` in the model card, so that a model sees in
production what it saw in training. Everything after it (channel order, mean, scale) is inside the graph:
``export.preprocessing``.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile

from export.errors import ImageError
from pipeline.data.image_files import Budget, as_image_error, image_file, open_image_file

Resize = Literal["stretch", "crop", "imagenet", "pad"]
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs, an error here instead of a warning
MAX_SIDE = 1_000_000  # shrinking takes memory for each pixel of a side; JPEG ends at 65,535
STRIP = 2**20  # pixels that are converted at once where the conversion needs several copies
SCRATCH = 2**24  # pixels that a resize may hold between its two passes
MOST_WHOLE = 8  # times the target side: up to here "imagenet" resizes a whole side, bit-identical to torchvision

# Formats whose header has the size of the decoded picture; an icon, for example, holds pictures of other sizes.
SIZED = frozenset({"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
# Pixels that all threads together decode at a time: one picture of the maximum size, or enough for every core.
_PIXELS = Budget(max(MAX_PIXELS, (os.cpu_count() or 1) * 2**24))
LARGE_PIXELS = 2**24  # pixels, of which each takes 4 bytes


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The decoded picture, upright, while the block runs; threads wait before their pixels fill the memory."""
    image = Image.open(io.BytesIO(data))
    _check_format(image)
    pixels = _pixels_to_decode(image)
    if pixels > LARGE_PIXELS:  # the C library may keep freed memory for its thread, unless it is in large blocks
        Image.core.set_block_size(4 * LARGE_PIXELS)  # type: ignore[attr-defined]
    with _PIXELS.hold(pixels):
        try:
            image.load()
            _check_size(image)  # the size of an icon is known only now
            ImageOps.exif_transpose(image, in_place=True)
            yield image
        except BaseException:
            image.close()  # the error refers to it, so its pixels would live as long as the error
            raise


def resize_image(image: Image.Image, size: tuple[int, int], mode: Resize = "stretch") -> np.ndarray:
    """Resize with Pillow's antialiased bilinear filter; the memory is bounded for images of any proportions.

    Args:
        image: RGB, or 8-bit greyscale, which gives the same pixels as if it were converted to RGB before.
        size: (height, width) in pixels.
        mode: "stretch" to the size; "crop": the largest centred part with the target's aspect ratio, then resize;
            "imagenet": the short side to 8/7 of the size (256 for 224), then the centre; "pad": shrink to fit if it is
            larger, never enlarge, black around it. Defaults to "stretch".

    Returns:
        uint8 of shape (height, width, 3).
    """
    height, width = size
    resize = {"stretch": _stretch, "crop": _crop, "imagenet": _centre, "pad": _pad}[mode]
    return np.asarray(_in_mode("RGB", resize(image, width, height)), dtype=np.uint8)


def _stretch(image: Image.Image, width: int, height: int) -> Image.Image:
    """Reduce the height of a tall, narrow picture first: Pillow resizes rows first, which would fill the memory."""
    if image.width < width and width * image.height > SCRATCH:
        image = image.resize((image.width, height), Image.Resampling.BILINEAR)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _crop(image: Image.Image, width: int, height: int) -> Image.Image:
    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    """The centre of the picture at 8/7 of the target size; nothing far outside that centre is computed."""
    scale = max(width / image.width, height / image.height) * 8 / 7
    whole = round(image.width * scale), round(image.height * scale)
    left, right = _computed(whole[0], width)
    top, bottom = _computed(whole[1], height)
    across, down = image.width / whole[0], image.height / whole[1]
    part = image.resize(
        (right - left, bottom - top),
        Image.Resampling.BILINEAR,
        box=(left * across, top * down, min(right * across, image.width), min(bottom * down, image.height)),
    )
    x, y = (whole[0] - width) // 2 - left, (whole[1] - height) // 2 - top
    return part.crop((x, y, x + width, y + height))


def _computed(whole: int, target: int) -> tuple[int, int]:
    """The range of a resized side that is computed to get its centre.

    It is the whole side up to `WHOLE` times the target: Pillow keeps the edges of a part in 32 bits, so that one value
    in fifty would differ by one grey level from the same part of the whole.
    """
    start = (whole - target) // 2
    return (0, whole) if whole <= MOST_WHOLE * target else (start, start + target)


def _pad(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(1.0, width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    result = Image.new(image.mode, (width, height))
    result.paste(image.resize(size, Image.Resampling.BILINEAR), ((width - size[0]) // 2, (height - size[1]) // 2))
    return result


def load_image(source: Path | bytes, size: tuple[int, int], mode: Resize = "stretch") -> np.ndarray:
    """Decode and resize one image to uint8 of shape (height, width, 3).

    The EXIF orientation is applied, greyscale is repeated over the channels, transparency is composited on black,
    16-bit greyscale is scaled to 8 bit, an animation gives its first frame.

    Args:
        source: an image file in any format that Pillow reads, or its bytes.
        size: (height, width) in pixels.
        mode: see `resize_image`. Defaults to "stretch".

    Raises:
        ImageError: the file cannot be read, is no image, is truncated, has more than 179 megapixels or a million pixels
            on a side, or is PostScript.
    """
    if not isinstance(source, bytes):
        with image_file(source) as data:
            return load_image(data, size, mode)
    with as_image_error(len(source)), _opened(source) as image, contextlib.closing(image):
        return resize_image(_flat(image), size, mode)


def array_to_image(pixels: np.ndarray) -> Image.Image:
    """Make an RGB image of a uint8 array of shape (height, width) or (height, width, 1 or 3)."""
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).convert("RGB")


def check_header(path: Path) -> None:
    """Refuse a file whose header is not that of an image, without decoding it.

    Damage behind the header is found only by decoding.

    Raises:
        ImageError: the file cannot be read, is empty or no image, or its header states more pixels than are allowed.
    """
    with open_image_file(path) as file, as_image_error(os.fstat(file.fileno()).st_size), Image.open(file) as image:
        _check_format(image)


def _check_format(image: Image.Image) -> None:
    if image.format == "EPS":
        raise ImageError("EPS is a program, which is not run; save the picture as PNG or JPEG")
    _check_size(image)


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,} allowed")
    if max(image.size) > MAX_SIDE:
        raise ImageError(f"{image.width}x{image.height} pixels, a side of more than {MAX_SIDE:,}")


def _pixels_to_decode(image: Image.Image) -> int:
    """How many pixels decoding holds in memory, according to the header."""
    if image.format not in SIZED:
        return MAX_PIXELS
    if not isinstance(image, TiffImageFile):
        return image.width * image.height
    across, down = (int(image.tag_v2.get(tag, 1)) for tag in (TILEWIDTH, TILELENGTH))
    if across * down > MAX_PIXELS:
        raise ImageError(f"tiles of {across}x{down} pixels, more than {MAX_PIXELS:,} allowed")
    return max(image.width * image.height, across * down)  # a tile may be larger than the picture


def _flat(image: Image.Image) -> Image.Image:
    """RGB without transparency; greyscale stays greyscale, in 8 bits, which needs a quarter of the memory."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return _by_strips(image, _scaled_to_8_bit, "L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _by_strips(image, _on_black, "RGB")
    return _in_mode("L" if image.mode in ("1", "L") else "RGB", image)


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image], mode: str) -> Image.Image:
    """Convert some rows at a time, so that a large picture is not in memory five times."""
    rows = max(1, STRIP // image.width)
    if image.height <= rows:
        return convert(image)
    result = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        strip = (0, top, image.width, min(top + rows, image.height))
        result.paste(convert(image.crop(strip)), strip)
    return result


def _scaled_to_8_bit(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))


def _on_black(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA")).convert("RGB")


@dataclass(frozen=True)
class DecodeSpec:
    """How a file or an array is decoded to the graph's input: uint8 of shape (height, width, 3).

    The model card holds it; ONNX files, sidecars and ``reference.npz`` repeat it. The fields with one possible value
    are the rules of this module. A card with other values comes from another version, whose pixels differ, and is
    refused.

    Attributes:
        size: height and width of the model's input in pixels.
        resize: mode of `resize_image`.
        colour: order of the channels.
        filter: Pillow's filter for every resize.
        orientation: the EXIF tag is applied.
        transparency: the background of transparent pixels.
        sixteen_bit: the part of a 16-bit grey value that is used.
        animation: the frame that is used.
    """

    size: tuple[int, int]
    resize: Resize
    colour: Literal["RGB"] = "RGB"
    filter: Literal["bilinear, antialiased"] = "bilinear, antialiased"
    orientation: Literal["as EXIF says"] = "as EXIF says"
    transparency: Literal["on black"] = "on black"
    sixteen_bit: Literal["high byte"] = "high byte"
    animation: Literal["first frame"] = "first frame"

    def __post_init__(self) -> None:
        if not all(1 <= side <= 4096 for side in self.size):
            raise ValueError(f"a size of {self.size[0]}x{self.size[1]} pixels")

    def pixels(self, source: Path | str | bytes | np.ndarray) -> np.ndarray:
        """Decode and resize one image.

        Args:
            source: an image file, its bytes, or uint8 pixels of shape (height, width[, 1 or 3]).

        Returns:
            uint8 of shape (height, width, 3).

        Raises:
            ImageError: the file cannot be read or decoded; the message says why.
        """
        if isinstance(source, np.ndarray):
            return resize_image(array_to_image(source), self.size, self.resize)
        return load_image(Path(source) if isinstance(source, str) else source, self.size, self.resize)
