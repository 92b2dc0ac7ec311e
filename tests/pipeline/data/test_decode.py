from __future__ import annotations

import contextlib
import importlib.util
import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from export.errors import ImageError
from export.files import ROOT
from pipeline.data import decode as preprocess
from pipeline.data import formats
from pipeline.data.decode import array_to_image, load_image
from pipeline.data.formats import MAX_PIXELS
from pipeline.data.image_files import Budget
from pipeline.data.resize import resize_image
from pipeline.recipe.messages import EXTENSIONS

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], np.uint8).repeat(8, 0).repeat(8, 1)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data: bytes) -> Image.Image:
    """The whole picture as RGB, before it is resized."""
    known = load_image(data, (1, 1))
    return Image.fromarray(load_image(data, (known.height, known.width)).pixels)


def pixels_of(image: Image.Image, kind: str = "PNG", **options: object) -> np.ndarray:
    decoded = decode(encode(image, kind, **options))
    assert decoded.mode == "RGB"
    return np.asarray(decoded)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_lossless_formats(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels_of(Image.fromarray(COLOURS), kind, **options), COLOURS)


def test_jpeg() -> None:
    grey = np.full((16, 16, 3), 120, np.uint8)
    assert np.array_equal(pixels_of(Image.fromarray(grey), "JPEG"), grey)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_black(mode: str) -> None:
    alpha = np.array([[0, 255], [128, 51]], np.uint8)
    image = Image.new("L" if mode == "LA" else "RGB", (2, 2), "white").convert(mode)
    image.putalpha(Image.fromarray(alpha))
    expected = np.repeat(alpha[..., None], 3, axis=2)
    assert np.abs(pixels_of(image).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("as_bytes", [False, True])
def test_palette_with_transparency(as_bytes: bool) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    received = pixels_of(image, transparency=bytes([0, 255]) if as_bytes else 0)
    assert received.tolist() == [[[0, 0, 0], [0, 255, 0]]]


def test_palette_without_transparency() -> None:
    image = Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(pixels_of(image), COLOURS)


def test_rgb_with_a_transparent_colour() -> None:
    received = pixels_of(Image.fromarray(COLOURS), transparency=(255, 0, 0))
    expected = COLOURS.copy()
    expected[:8, :8] = 0
    assert np.array_equal(received, expected)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_greyscale_is_repeated(mode: str) -> None:
    grey = np.array([[0, 255], [255, 0]], np.uint8)
    received = pixels_of(Image.fromarray(grey).convert(mode))
    assert np.array_equal(received, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_greyscale_is_scaled(kind: str) -> None:
    deep = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    received = pixels_of(Image.fromarray(deep), kind)
    assert received[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]
    assert np.array_equal(received[..., 0], received[..., 2])


def test_sixteen_bit_greyscale_big_endian() -> None:
    data = b"P5 2 1 65535\n" + struct.pack(">HH", 0x8000, 0xFFFF)
    assert np.asarray(decode(data))[..., 0].tolist() == [[128, 255]]


def test_cmyk_jpeg() -> None:
    received = pixels_of(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert np.abs(received.astype(int) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = COLOURS[:, :12]
    undo = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    assert np.array_equal(pixels_of(stored, exif=exif), upright)


def test_damaged_exif_is_no_damaged_image() -> None:
    assert np.array_equal(pixels_of(Image.fromarray(COLOURS), exif=b"Exif\0\0MM\0*garbage"), COLOURS)


def test_of_an_animation_the_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    received = pixels_of(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    assert (received == [255, 0, 0]).all()


# --- what is refused ---


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    for part in (0.2, 0.5, 0.9):
        with pytest.raises(ImageError):
            decode(data[: int(len(data) * part)])


def test_png_with_a_wrong_checksum() -> None:
    data = bytearray(encode(Image.fromarray(COLOURS)))
    position = data.index(b"IDAT") + 6
    data[position] ^= 0xFF
    with pytest.raises(ImageError):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "it begins as PNG, and the rest"),
        (b"\0" * 99, "not an image"),
    ],
)
def test_what_is_no_image(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


def bomb(width: int, height: int) -> bytes:
    """The header of a PNG, and hardly any data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height"), [(MAX_PIXELS + 1, 1), (14000, 14000), (30000, 30000), (2**31 - 1, 2**31 - 1)]
)
def test_decompression_bomb(width: int, height: int) -> None:
    with pytest.raises(ImageError):
        decode(bomb(width, height))


def test_a_bomb_says_how_many_pixels() -> None:
    with pytest.raises(ImageError, match=r"196000000 pixels|14000x14000 pixels"):
        decode(bomb(14000, 14000))


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200), kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP"]), cut=st.integers(0, 120))
def test_any_damage_is_an_image_error_or_an_image(data: bytes, kind: str, cut: int) -> None:
    whole = encode(Image.fromarray(COLOURS), kind)
    with contextlib.suppress(ImageError):
        assert decode(whole[:cut] + data + whole[cut + len(data) :]).mode == "RGB"


def test_decoding_in_threads_leaves_the_warning_filters() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise))
    with warnings.catch_warnings():
        before = list(warnings.filters)
        for _ in range(5):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(decode, [data] * 60))
        assert list(warnings.filters) == before


# --- load_image ---


@pytest.mark.parametrize("mode", ["stretch", "crop"])
def test_bytes_and_path_give_the_same_pixels(tmp_path: Path, mode: str) -> None:
    data = encode(Image.fromarray(COLOURS[:, :12]), "JPEG")
    (tmp_path / "x.jpg").write_bytes(data)
    assert np.array_equal(load_image(tmp_path / "x.jpg", (5, 6), mode).pixels, load_image(data, (5, 6), mode).pixels)


def test_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        load_image(tmp_path / "x.png", (4, 4))
    with pytest.raises(ImageError, match="a folder, not a regular file"):
        load_image(tmp_path, (4, 4))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
def test_arrays(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    received = np.asarray(array_to_image(array))
    assert np.array_equal(received, np.broadcast_to(array.reshape(4, 5, -1), (4, 5, 3)))


def test_extensions_are_lower_case_and_known_to_pillow() -> None:
    Image.init()
    heic = {".heic", ".heif"} if importlib.util.find_spec("pillow_heif") else set()
    assert all(ending == ending.lower() and ending in Image.EXTENSION for ending in EXTENSIONS - heic)
    assert heic == EXTENSIONS & {".heic", ".heif"}


# --- bounded memory ---


@pytest.mark.parametrize("side", [(1, 1_000_001), (1_000_001, 1), (2, 80_000_000)])
def test_a_side_that_no_picture_has_is_refused_before_it_is_decoded(side: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"a side of more than 1,000,000"):
        decode(bomb(*side))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "RGB"])
def test_what_is_converted_by_strips_is_what_is_converted_at_once(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    random = np.random.default_rng(0)
    shapes = {"RGBA": (23, 17, 4), "LA": (23, 17, 2), "RGB": (23, 17, 3)}
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 65536, (23, 17), dtype=np.uint16))
    else:
        image = Image.fromarray(random.integers(0, 256, shapes.get(mode, (23, 17)), dtype=np.uint8))
    options = {}
    if mode == "P":
        image = image.convert("P")
        options = {"transparency": bytes(range(256))}
    data = encode(image, **options)
    at_once = np.asarray(decode(data))
    for pixels in (17 * 5, 16, 1):
        monkeypatch.setattr(preprocess, "STRIP", pixels)
        assert np.array_equal(np.asarray(decode(data)), at_once)


PEAK = """
import re, sys
from pathlib import Path
from pipeline.data.decode import load_image
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
load_image(Path(sys.argv[1]).read_bytes(), (32, 32))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(("mode", "copies"), [("RGB", 1), ("RGBA", 2), ("I;16", 1.5)])
def test_a_large_picture_is_decoded_without_needless_copies(tmp_path: Path, mode: str, copies: float) -> None:
    side = 4000
    (tmp_path / "x.png").write_bytes(encode(Image.new(mode, (side, side)), compress_level=1))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "x.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < copies * 4 * side * side + 40e6


def test_a_program_in_postscript_is_not_run() -> None:
    with pytest.raises(ImageError, match="EPS is a program, which is not run"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize("kind", ["1", "L", "I;16", "I", "P"])
def test_grey_that_is_resized_as_grey_is_what_it_would_be_as_rgb(kind: str) -> None:
    random = np.random.default_rng(1)
    if kind in ("I;16", "I"):
        grey = Image.fromarray(random.integers(0, 65536, (133, 171), dtype=np.uint16))
        grey = grey.convert("I") if kind == "I" else grey
    else:
        grey = Image.fromarray(random.integers(0, 256, (133, 171), dtype=np.uint8)).convert(kind)
    for image in (grey, grey.crop((0, 0, 171, 3)), grey.crop((0, 0, 5, 133)), grey.crop((0, 0, 32, 24))):
        data = encode(image, "PPM" if kind == "I" else "TIFF")
        for mode in ("stretch", "crop", "imagenet", "pad"):
            expected = resize_image(decode(data), (24, 32), mode)
            assert np.array_equal(load_image(data, (24, 32), mode).pixels, expected)


# --- bounded memory of all threads together ---

THREADS = """
import os, re, sys, warnings
os.cpu_count = lambda: 2
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pipeline.data.dataset import Pixels
from pipeline.data.decode import DecodeSpec
from pipeline.data.decode import ImageError
from pipeline.data.sample import Sample
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
warnings.simplefilter("ignore")
pixels = Pixels(DecodeSpec((32, 32), "stretch"), 9)
sample = Sample("x", 0, "", lambda: Path(sys.argv[1]))
before = peak()
with ThreadPoolExecutor(6) as pool:
    found = list(pool.map(pixels._try, [sample] * int(sys.argv[2])))
print(peak() - before, {type(one).__name__ for one in found})
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(("part", "found", "count"), [(1, "ndarray", 3), (0.9, "ImageError", 6)])
def test_pictures_of_a_few_bytes_do_not_fill_the_memory_together(
    tmp_path: Path, part: float, found: str, count: int
) -> None:
    side = 9_500  # two of them are more than is decoded at a time
    data = encode(Image.new("1", (side, side)), compress_level=1)
    assert len(data) < 100_000
    (tmp_path / "x.png").write_bytes(data[: int(len(data) * part)])
    command = [sys.executable, "-c", THREADS, str(tmp_path / "x.png"), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peak, _, types = done.stdout.partition(" ")
    assert types.strip() == f"{{'{found}'}}"
    assert int(peak) < 4 * side * side


def tiled(side: int) -> bytes:
    """A TIFF of 16x16 pixels in one tile of side x side."""
    data = zlib.compress(bytes(side * side))
    tags = ((256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side), (324, 8))
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*tags, (325, len(data)))]
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 10) + b"".join(entries) + bytes(4)


def test_a_tile_counts_as_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    hold = Budget.hold
    monkeypatch.setattr(Budget, "hold", lambda self, amount: asked.append(amount) or hold(self, amount))
    assert np.asarray(decode(tiled(48))).shape == (16, 16, 3)
    assert decode(encode(Image.new("L", (20, 30)), "TIFF")).size == (20, 30)
    decode(encode(Image.new("L", (32, 32)), "ICO"))  # the pictures inside may be of any size
    assert list(dict.fromkeys(asked)) == [48 * 48, 600, MAX_PIXELS]
    monkeypatch.setattr(formats, "MAX_PIXELS", 48 * 48 - 1)
    with pytest.raises(ImageError, match="tiles of 48x48 pixels, more than 2,303 allowed"):
        decode(tiled(48))
