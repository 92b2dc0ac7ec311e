"""Which images are decoded: known by their content, refused by their header before anything is decoded."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import StubImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TILELENGTH, TILEWIDTH, TiffImageFile

from export.errors import ImageError
from pipeline.data.jpeg import why_unsupported

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs, an error here instead of a warning
MAX_SIDE = 1_000_000  # shrinking takes memory for each pixel of a side; JPEG ends at 65,535
# Formats whose header has the size of the decoded picture; an icon, for example, holds pictures of other sizes.
SIZED = frozenset({"AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"})

_HEAD = 2**20  # bytes in which a JPEG's frame header is looked for; colour profiles and previews come before it
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_AS_8_OR_16_BIT = "save it as 8 or 16 bit"
_heif = threading.Lock()


def open_image(file: BinaryIO) -> Image.Image:
    """Identify an image and read its header; nothing is decoded.

    Args:
        file: at its start.

    Raises:
        ImageError: it is of a kind that is not decoded, or its header states more pixels than are allowed.
        OSError: it cannot be read, or is no image.
    """
    head = file.read(12)
    file.seek(0)
    is_heif = head[4:8] == b"ftyp" and head[8:12] in _HEIF
    if is_heif:
        _take_heif()
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        reason, size = _why_unidentified(file, head, is_heif)
        if not reason:
            raise
        raise ImageError(reason, "unsupported", size) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{error}".split(", could be")[0], "too_large") from None
    check_format(image)
    return image


def _take_heif() -> None:
    """Let Pillow open HEIC, where pillow-heif is installed; after its own formats, so that AVIF stays Pillow's."""
    with _heif, contextlib.suppress(ModuleNotFoundError):
        import pillow_heif

        if "HEIF" not in Image.OPEN:
            Image.init()
            pillow_heif.register_heif_opener(thumbnails=False)


def _why_unidentified(file: BinaryIO, head: bytes, is_heif: bool) -> tuple[str, tuple[int, int] | None]:
    """Why an image that Pillow does not identify is one nevertheless, and its size; "" where it is none."""
    if is_heif and importlib.util.find_spec("pillow_heif") is None:
        return "HEIC, which is decoded where pillow-heif is installed: pip install pillow-heif", None
    if head.startswith(b"\xff\xd8\xff"):
        return why_unsupported(file.read(_HEAD)) or ("", None)
    if head.startswith(_TIFF):
        try:
            TiffImageFile(file)
        except Exception as error:  # whatever it raises on damaged files, it is no such reason
            if "unknown pixel mode" in str(error):
                return f"a TIFF of values that are not decoded, such as float; {_AS_8_OR_16_BIT}", None
    return "", None


def check_format(image: Image.Image) -> None:
    """Refuse a kind of image that is not decoded, and more pixels than are allowed.

    Raises:
        ImageError: with the status, and the size that the header states.
    """
    if reason := _why_not(image):
        raise ImageError(reason, "unsupported", image.size)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,} allowed", "too_large", image.size
        )
    if max(image.size) > MAX_SIDE:
        raise ImageError(
            f"{image.width}x{image.height} pixels, a side of more than {MAX_SIDE:,}", "too_large", image.size
        )


def _why_not(image: Image.Image) -> str:
    if image.format == "EPS":
        return "EPS is a program, which is not run; save the picture as PNG or JPEG"
    if isinstance(image, StubImageFile) or image.format == "MPEG":
        return f"{image.format}, which is not decoded; save the picture as PNG or JPEG"
    if image.mode == "F":
        return f"float values, whose range is unknown; {_AS_8_OR_16_BIT}"
    if image.mode == "I" and image.format != "PPM":  # a PPM's header states its largest value
        return f"32-bit or signed values, whose range is unknown; {_AS_8_OR_16_BIT}"
    if image.mode == "LAB":
        return "CIELAB colours; save it as RGB"
    if isinstance(image, TiffImageFile) and image.mode.startswith("I;16"):
        bits = image.tag_v2.get(BITSPERSAMPLE, (16,))
        if tuple(bits) != (16,):
            return f"values of {bits[0]} bits; {_AS_8_OR_16_BIT}"
    return ""


def pixels_to_decode(image: Image.Image) -> int:
    """Return how many pixels decoding holds in memory, according to the header.

    Raises:
        ImageError: more than are allowed.
    """
    if image.format not in SIZED:
        return MAX_PIXELS
    if not isinstance(image, TiffImageFile):
        return image.width * image.height
    across, down = (int(image.tag_v2.get(tag, 1)) for tag in (TILEWIDTH, TILELENGTH))
    if across * down > MAX_PIXELS:
        raise ImageError(f"tiles of {across}x{down} pixels, more than {MAX_PIXELS:,} allowed", "too_large", image.size)
    return max(image.width * image.height, across * down)  # a tile may be larger than the picture
