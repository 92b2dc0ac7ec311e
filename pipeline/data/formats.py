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
_SAMPLE_FORMAT, _SIGNED = 339, 2  # of a TIFF
_AVIF = frozenset({b"avif", b"avis"})
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
    kind = begins_as(head)
    if kind == "HEIC":
        _take_heif()
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        _explain(file, kind)
        raise
    except Image.DecompressionBombError as error:
        size = _size_in(error)
        stated = f"{size[0]}x{size[1]} pixels" if size else "pixels in its header"
        raise ImageError(f"{stated}, more than {MAX_PIXELS:,} allowed", "too_large", size) from None
    check_format(image)
    return image


def _size_in(error: Image.DecompressionBombError) -> tuple[int, int] | None:
    """The size that Pillow refused: its error does not hold it, the function that raised it does."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    size = place.tb_frame.f_locals.get("size") if place else None
    return size if isinstance(size, tuple) and len(size) == 2 else None


def _take_heif() -> None:
    """Let Pillow open HEIC, where pillow-heif is installed; after its own formats, so that AVIF stays Pillow's."""
    with _heif, contextlib.suppress(ModuleNotFoundError):
        import pillow_heif

        if "HEIF" not in Image.OPEN:
            Image.init()
            pillow_heif.register_heif_opener(thumbnails=False)


def begins_as(head: bytes) -> str:
    """Return the format whose signature a file's first 12 bytes or more have; "" for none of the usual ones."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    signs = {
        "JPEG": head.startswith(b"\xff\xd8\xff"),
        "PNG": head.startswith(b"\x89PNG\r\n\x1a\n"),
        "GIF": head.startswith((b"GIF87a", b"GIF89a")),
        "TIFF": head.startswith(_TIFF),
        "WebP": head.startswith(b"RIFF") and head[8:12] == b"WEBP",
        "AVIF": brand in _AVIF,
        "HEIC": brand in _HEIF,
        "JPEG 2000": head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")),
    }
    return next((name for name, fits in signs.items() if fits), "")


def _explain(file: BinaryIO, kind: str) -> None:
    """Say why a file that begins as an image is not identified.

    Raises:
        ImageError: it is of a kind that is not decoded, or its header is damaged.
    """
    if kind == "HEIC" and importlib.util.find_spec("pillow_heif") is None:
        raise ImageError(
            "HEIC, which is decoded where pillow-heif is installed: pip install pillow-heif", "unsupported"
        )
    if kind == "JPEG" and (why := why_unsupported(file.read(_HEAD))):
        raise ImageError(why[0], "unsupported", why[1])
    if kind == "TIFF":
        try:
            TiffImageFile(file)
        except Exception as error:  # whatever else it raises on damaged files
            if "unknown pixel mode" in str(error):
                reason = f"a TIFF of values that are not decoded, such as float; {_AS_8_OR_16_BIT}"
                raise ImageError(reason, "unsupported") from None
    if kind:
        raise ImageError(f"it begins as {kind}, and the rest of its header is damaged or missing", "damaged")


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
        return f"32-bit or signed 16-bit values, whose range is unknown; {_AS_8_OR_16_BIT}"
    if image.mode == "LAB":
        return "CIELAB colours; save it as RGB"
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(BITSPERSAMPLE, (1,))
        if image.mode.startswith("I;16") and tuple(bits) != (16,):
            return f"values of {bits[0]} bits; {_AS_8_OR_16_BIT}"
        if _SIGNED in image.tag_v2.get(_SAMPLE_FORMAT, ()):
            return f"signed values, whose range is unknown; {_AS_8_OR_16_BIT}"
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
