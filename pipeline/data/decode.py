"""The host part of preprocessing: decode and resize images to uint8 RGB.

Training, calibration, verification and inference decode by the `DecodeSpec` in the model card, so that a model sees in
production what it saw in training. Everything after it (channel order, mean, scale) is inside the graph:
``export.preprocessing``.
"""

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from export.errors import ImageError
from pipeline.data.formats import MAX_PIXELS, check_format, open_image, pixels_to_decode
from pipeline.data.image_files import LARGEST_FILE, Budget, as_image_error, check_bytes, image_file, open_image_file
from pipeline.data.jpeg import FORMATS, read_jpeg, why_unsupported
from pipeline.data.resize import SCRATCH, Resize, Turned, resize_image

STRIP = 2**20  # pixels that are converted at once where the conversion needs several copies
# Pixels that all threads together decode at a time: one picture of the maximum size, or enough for every core.
_PIXELS = Budget(max(MAX_PIXELS, (os.cpu_count() or 1) * 2**24))
LARGE_PIXELS = 2**24  # pixels, of which each takes 4 bytes
_TURNS = {  # what turns the stored picture upright, by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

JpegScaling = Literal["none", "dct"]


class Decoded(NamedTuple):
    """A decoded and resized picture.

    Attributes:
        pixels: uint8 of shape (height, width, 3) of the model's input.
        width: of the upright picture in pixels, before it was resized.
        height: likewise.
        damage: of a damaged picture that was decoded as far as it goes, the reason. Defaults to "": none.
    """

    pixels: np.ndarray
    width: int
    height: int
    damage: str = ""


def load_image(
    source: Path | bytes,
    size: tuple[int, int],
    mode: Resize = "stretch",
    *,
    jpeg_scaling: JpegScaling = "none",
    keep_damaged: bool = False,
    largest_file: int = LARGEST_FILE,
) -> Decoded:
    """Decode and resize one image to uint8 of shape (height, width, 3).

    The EXIF orientation is applied, greyscale is repeated over the channels, transparency is composited on black,
    16-bit greyscale is scaled to 8 bit, an animation gives its first frame. 32-bit and float values are refused, and
    JPEG with damage that libjpeg-turbo notices.

    Args:
        source: an image file in any format that Pillow reads, or its bytes.
        size: (height, width) in pixels.
        mode: see `resize_image`. Defaults to "stretch".
        jpeg_scaling: see `DecodeSpec`. Defaults to "none".
        keep_damaged: whether a damaged JPEG is decoded as far as it goes. Defaults to False.
        largest_file: bytes; a larger file is refused before it is read. Defaults to 512 MiB.

    Raises:
        ImageError: the file is missing, no regular file, unreadable, too large, no image, of a kind that is not
            decoded, or damaged: its status says which.
    """
    try:
        if isinstance(source, bytes):
            check_bytes(len(source), largest_file)
            return _load(source, size, mode, jpeg_scaling, keep_damaged)
        with image_file(source, largest_file) as data:
            return _load(data, size, mode, jpeg_scaling, keep_damaged)
    except ImageError as error:
        why = ImageError(str(error), error.status, error.size)
    raise why  # without the first one's traceback, which refers to the file's bytes and pixels


def _load(data: bytes, size: tuple[int, int], mode: Resize, scaling: JpegScaling, keep_damaged: bool) -> Decoded:
    with as_image_error(len(data)):
        image = open_image(io.BytesIO(data))
    least = None if scaling == "none" else _least_sides(size, mode)
    try:
        with as_image_error(), _decoded(image, data, size, least, keep_damaged) as (picture, damage):
            width, height = (picture.width, picture.height) if least is None else _upright_size(image)
            return Decoded(resize_image(picture, size, mode), width, height, damage)
    except ImageError as error:
        error.size = error.size or _upright_size(image)
        raise
    finally:
        image.close()


def _least_sides(size: tuple[int, int], mode: Resize) -> tuple[int, int]:
    """Height and width that a scaled JPEG keeps: twice those to which it is resized, so that resizing smooths it."""
    enlarged = 8 / 7 if mode == "imagenet" else 1
    return math.ceil(2 * enlarged * size[0]), math.ceil(2 * enlarged * size[1])


@contextlib.contextmanager
def _decoded(
    image: Image.Image, data: bytes, size: tuple[int, int], least: tuple[int, int] | None, keep_damaged: bool
) -> Iterator[tuple[Image.Image | Turned, str]]:
    """The picture, RGB or L and upright, and its damage, while the block runs.

    Threads wait before their pixels fill the memory.
    """
    pixels = pixels_to_decode(image)
    if pixels > LARGE_PIXELS:  # the C library may keep freed memory for its thread, unless it is in large blocks
        Image.core.set_block_size(4 * LARGE_PIXELS)  # type: ignore[attr-defined]
    with _PIXELS.hold(pixels):
        yield _jpeg(image, data, size, least, keep_damaged) if image.format in FORMATS else (_by_pillow(image), "")


def _by_pillow(image: Image.Image) -> Image.Image:
    image.load()
    check_format(image)  # the size of an icon is known only now
    ImageOps.exif_transpose(image, in_place=True)
    return _flat(image)


def _jpeg(
    image: Image.Image, data: bytes, size: tuple[int, int], least: tuple[int, int] | None, keep_damaged: bool
) -> tuple[Image.Image | Turned, str]:
    """The upright picture of a JPEG, a view of the thread's memory, and its damage."""
    turn = _orientation(image)
    by_columns = turn in (5, 6, 7, 8) and image.width * max(size) <= SCRATCH
    upside_down = turn == 4 or (by_columns and turn in (6, 7))
    if least is not None and turn in (5, 6, 7, 8):
        least = least[1], least[0]
    stored, damage = read_jpeg(data, image, keep_damaged=keep_damaged, upside_down=upside_down, least=least)
    if stored is None:
        try:
            return _by_pillow(image), damage
        except OSError:
            if why := why_unsupported(data):
                raise ImageError(why[0], "unsupported", why[1]) from None
            raise
    stored = _flat(stored)
    if by_columns:
        return Turned(stored, flipped=turn in (7, 8)), damage
    return stored.transpose(_TURNS[turn]) if turn in _TURNS and not upside_down else stored, damage


def _orientation(image: Image.Image) -> int:
    turn: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    return turn


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height, as far as they are known without decoding."""
    with contextlib.suppress(Exception):  # a damaged EXIF; the picture has an error already
        if image.format in FORMATS and _orientation(image) in (5, 6, 7, 8):
            return image.height, image.width
    return image.size


def array_to_image(pixels: np.ndarray) -> Image.Image:
    """Make an RGB image of a uint8 array of shape (height, width) or (height, width, 1 or 3)."""
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).convert("RGB")


def check_header(path: Path) -> None:
    """Refuse a file whose header is not that of an image, without decoding it.

    Damage behind the header is found only by decoding.

    Raises:
        ImageError: the file cannot be read, is empty or no image, of a kind that is not decoded, or its header states
            more pixels than are allowed.
    """
    with open_image_file(path) as file, as_image_error(os.fstat(file.fileno()).st_size), open_image(file):
        pass


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
        jpeg: what decodes JPEG; strict: what it warns of is damage.
        jpeg_scaling: "dct": libjpeg makes a JPEG smaller while it decodes it, by 2, 8/3, 4 or 8, where twice the sides
            remain to which it is resized: other pixels, much sooner. "none": it does not.
        wide: values whose range no file states.
    """

    size: tuple[int, int]
    resize: Resize
    colour: Literal["RGB"] = "RGB"
    filter: Literal["bilinear, antialiased"] = "bilinear, antialiased"
    orientation: Literal["as EXIF says"] = "as EXIF says"
    transparency: Literal["on black"] = "on black"
    sixteen_bit: Literal["high byte"] = "high byte"
    animation: Literal["first frame"] = "first frame"
    jpeg: Literal["libjpeg-turbo, strict"] = "libjpeg-turbo, strict"
    wide: Literal["32-bit and float refused"] = "32-bit and float refused"
    jpeg_scaling: JpegScaling = "none"

    def __post_init__(self) -> None:
        if not all(1 <= side <= 4096 for side in self.size):
            raise ValueError(f"a size of {self.size[0]}x{self.size[1]} pixels")

    def decode(
        self,
        source: Path | str | bytes | np.ndarray,
        *,
        keep_damaged: bool = False,
        largest_file: int = LARGEST_FILE,
    ) -> Decoded:
        """Decode and resize one image.

        Args:
            source: an image file, its bytes, or uint8 pixels of shape (height, width[, 1 or 3]).
            keep_damaged: whether a damaged JPEG is decoded as far as it goes. Defaults to False.
            largest_file: bytes; a larger file is refused before it is read. Defaults to 512 MiB.

        Returns:
            The pixels, and what is known of the picture.

        Raises:
            ImageError: the file cannot be read or decoded; the message says why, and the status what kind of reason.
        """
        if isinstance(source, np.ndarray):
            image = array_to_image(source)
            return Decoded(resize_image(image, self.size, self.resize), image.width, image.height)
        place = Path(source) if isinstance(source, str) else source
        return load_image(
            place,
            self.size,
            self.resize,
            jpeg_scaling=self.jpeg_scaling,
            keep_damaged=keep_damaged,
            largest_file=largest_file,
        )

    def pixels(self, source: Path | str | bytes | np.ndarray) -> np.ndarray:
        """Return the pixels of `decode`: uint8 of shape (height, width, 3).

        Raises:
            ImageError: see `decode`.
        """
        return self.decode(source).pixels
