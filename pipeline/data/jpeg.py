"""JPEG by libjpeg-turbo itself, since Pillow drops its warnings: damage inside the scan would pass silently.

The pixels are Pillow's to the bit. They lie in memory that a thread uses again and again, because the first touch of
fresh memory takes as long as decoding into it.
"""

from __future__ import annotations

import re
import struct
import threading

import numpy as np
from PIL import Image

from export.errors import ImageError

FORMATS = frozenset({"JPEG", "MPO"})  # an MPO is JPEGs one after another; the first one is decoded
KEPT_PIXELS = 2**24  # pixels of 4 bytes that a thread keeps memory for; a larger picture gets its own
_SPACES = {"L": ("GRAY", 1), "RGB": ("RGBX", 4), "CMYK": ("CMYK", 4)}  # Pillow's mode: simplejpeg's, bytes a pixel
# libjpeg's warnings that the coded pixels are not whole; every other error means that the file is of another kind.
_DAMAGE = re.compile("Corrupt JPEG data|Premature end of JPEG|Inconsistent progression sequence")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers with the size of the picture
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_thread = threading.local()


def read_jpeg(
    data: bytes,
    header: Image.Image,
    *,
    keep_damaged: bool = False,
    upside_down: bool = False,
    least: tuple[int, int] | None = None,
) -> tuple[Image.Image | None, str]:
    """Decode a JPEG into the thread's memory.

    Args:
        data: the file.
        header: what Pillow read in the beginning of it, not loaded.
        keep_damaged: whether damaged ones are decoded as far as they go. Defaults to False.
        upside_down: whether the rows are in reverse order, which costs nothing. Defaults to False.
        least: (height, width) in pixels: libjpeg's DCT scaling makes the picture smaller, by two or more, where so
            many remain. Defaults to None: it keeps its size.

    Returns:
        The picture, RGB, L or CMYK, valid until this thread decodes the next JPEG; None: Pillow has to decode it. And
        its damage; "": none.

    Raises:
        ImageError: it is damaged.
        MemoryError: there is too little memory.
    """
    space, bands = _SPACES[header.mode]
    buffer = _memory(header.width * header.height * bands)
    damage, size = "", _decode(data, space, buffer, header, least, strict=True)
    if isinstance(size, str):
        if not _DAMAGE.match(size):
            return None, ""
        if not keep_damaged:
            raise ImageError(size)
        damage, size = size, _decode(data, space, buffer, header, least, strict=False)
        if isinstance(size, str):
            return None, damage
    if header.mode == "CMYK":
        np.invert(buffer, out=buffer)  # JPEG stores it inverted
    core = Image.core.map_buffer(  # type: ignore[attr-defined]
        # `PIL.Image.frombuffer`, which takes four bytes a pixel as RGBX alone, resized a third slower than RGB
        *(buffer, size, "raw", 0, (header.mode, 0, -1 if upside_down else 1))
    )
    return Image.Image()._new(core), damage


def _decode(
    data: bytes, space: str, buffer: np.ndarray, header: Image.Image, least: tuple[int, int] | None, strict: bool
) -> tuple[int, int] | str:
    """Decode into the buffer; width and height of what is there, or the error's message."""
    import simplejpeg  # here, so that verbs that decode nothing, as the doctor, run without it

    try:
        height, width = least or (0, 0)
        pixels = simplejpeg.decode_jpeg(
            data, space, buffer=buffer, strict=strict, min_height=height, min_width=width, min_factor=2 if least else 1
        )
    except ValueError as error:
        if "memory" in str(error).lower():
            raise MemoryError(str(error)) from None
        return str(error) or "not decoded"
    if least is None and pixels.shape[:2] != (header.height, header.width):
        return "another size than its header states"
    return pixels.shape[1], pixels.shape[0]


def _memory(size: int) -> np.ndarray:
    """Bytes that this thread uses for one picture after another, or for a large picture its own."""
    if size > 4 * KEPT_PIXELS:
        return np.empty(size, np.uint8)
    kept: np.ndarray | None = getattr(_thread, "memory", None)
    if kept is None or kept.size < size:
        _thread.memory = kept = None  # freed before the larger one is taken
        _thread.memory = kept = np.empty(size, np.uint8)
    return kept[:size]


def why_unsupported(data: bytes) -> tuple[str, tuple[int, int]] | None:
    """Return why a JPEG is of a kind that is not decoded, and its size; None where it is of a usual kind or none.

    Args:
        data: the file, or its beginning.
    """
    frame = _frame(data)
    if frame is None:
        return None
    marker, bits, height, width, layers = frame
    reasons = {
        f"a JPEG of {bits} bits a value": bits != 8,
        "a lossless JPEG": marker in _LOSSLESS,
        "a hierarchical JPEG": marker in (0xC5, 0xC6, 0xCD, 0xCE),
        f"a JPEG of {layers} colour layers": layers not in (1, 3, 4),
    }
    kind = next((reason for reason, fits in reasons.items() if fits), "")
    return (f"{kind}; save it as an ordinary JPEG or PNG", (width, height)) if kind else None


def _frame(data: bytes) -> tuple[int, int, int, int, int] | None:
    """The first frame header: marker, bits a value, height, width, number of layers."""
    place = 2 if data[:3] == b"\xff\xd8\xff" else len(data)
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES:
            bits, height, width, layers = struct.unpack_from(">BHHB", data, place + 4)
            return marker, bits, height, width, layers
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
