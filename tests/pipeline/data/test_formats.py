"""What kinds of images are decoded, and the status of what is not: by its content, its size, and its place."""

from __future__ import annotations

import importlib.util
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import ImageError
from export.files import ROOT
from pipeline.data import decode as decoding
from pipeline.data import image_files
from pipeline.data.decode import DecodeSpec, check_header, load_image
from tests.fakes.odd_files import HEIC, encoded, overwritten, picture, png, tiff

SPEC = DecodeSpec((64, 96), "stretch")
needs_heif = pytest.mark.skipif(not HEIC, reason="needs pillow-heif")


def refusal(source: Path | str | bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        SPEC.decode(source)
    return caught.value


# --- formats ---


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", pytest.param("HEIF", marks=needs_heif)])
def test_a_newer_format_gives_about_the_picture(kind: str) -> None:
    decoded = SPEC.decode(encoded(picture(), kind))
    assert (decoded.width, decoded.height) == (96, 64)
    assert np.abs(decoded.pixels.astype(int) - np.asarray(picture())).mean() < 12


ONLY_FOR_HEIC = """
import sys
from pathlib import Path
from PIL import Image
from pipeline.data.decode import load_image
heic, png = (Path(name).read_bytes() for name in sys.argv[1:])
load_image(png, (4, 4))
assert "pillow_heif" not in sys.modules
load_image(heic, (4, 4))
assert Image.ID.index("AVIF") < Image.ID.index("HEIF")
"""


@needs_heif
def test_heic_is_opened_by_a_package_that_is_imported_when_it_is_needed(tmp_path: Path) -> None:
    for name, kind in (("heic", "HEIF"), ("png", "PNG")):
        (tmp_path / name).write_bytes(encoded(picture(), kind))
    command = [sys.executable, "-c", ONLY_FOR_HEIC, str(tmp_path / "heic"), str(tmp_path / "png")]
    subprocess.run(command, cwd=ROOT, check=True)


@needs_heif
def test_heic_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), "HEIF")
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "pillow_heif" else real(name))
    error = refusal(data)
    assert error.status == "unsupported"
    assert "pip install pillow-heif" in str(error)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(Image.fromarray(np.ones((4, 6), np.float32)), "TIFF"), "float values"),
        (tiff(64, 1, 3, np.ones(4).tobytes()), "such as float"),
        (tiff(32, 3, 3, np.ones(12, np.float32).tobytes(), 2), "such as float"),
        (tiff(32, 1, 1, np.ones(4, np.uint32).tobytes()), "32-bit or signed"),
        (tiff(32, 1, 2, np.ones(4, np.int32).tobytes()), "32-bit or signed"),
        (tiff(16, 1, 2, np.ones(4, np.int16).tobytes()), "32-bit or signed"),
        (tiff(8, 1, 2, bytes(4)), "signed values"),
        (tiff(12, 1, 1, bytes(6)), "values of 12 bits"),
        (b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 0.5, 1), "float values"),
    ],
)
def test_values_without_a_known_range_are_refused_with_what_to_do(tmp_path: Path, data: bytes, reason: str) -> None:
    error = refusal(data)
    assert error.status == "unsupported"
    assert reason in str(error)
    assert str(error).endswith("save it as 8 or 16 bit")
    (tmp_path / "x.tif").write_bytes(data)
    with pytest.raises(ImageError, match=reason):
        check_header(tmp_path / "x.tif")


@pytest.mark.parametrize(
    "data",
    [
        tiff(16, 1, 1, np.array([0, 255, 0x1234, 65535], "<u2").tobytes()),
        encoded(Image.fromarray(np.array([[0, 255], [0x1234, 65535]], np.uint16)), "PNG"),
        b"P5 2 2 65535\n" + struct.pack(">4H", 0, 255, 0x1234, 65535),
        b"P2 2 2 65535\n0 255 4660 65535\n",
    ],
)
def test_of_16_bits_the_high_byte_is_taken(data: bytes) -> None:
    assert load_image(data, (2, 2)).pixels[..., 0].tolist() == [[0, 0], [0x12, 255]]


def test_a_pgm_states_its_largest_value() -> None:
    pixels = load_image(b"P5 2 1 1023\n" + struct.pack(">HH", 512, 1023), (1, 2)).pixels
    assert pixels[0, :, 0].tolist() == [128, 255]


def test_what_pillow_knows_and_does_not_decode_is_unsupported() -> None:
    assert refusal(b"GRIB" + bytes(3) + b"\1" + bytes(40)).status == "unsupported"
    assert refusal(tiff(8, 3, 1, bytes(12), 8)).status == "unsupported"


def test_the_same_bytes_as_file_and_as_bytes_have_the_same_status(tmp_path: Path) -> None:
    for data in (b"", b"no", png(30_000, 30_000), encoded(picture(), "JPEG")[:900], overwritten(bytes(99), 0, 99)):
        (tmp_path / "x").write_bytes(data)
        one, other = refusal(data), refusal(tmp_path / "x")
        assert (one.status, str(one), one.size) == (other.status, str(other), other.size)


# --- sizes ---


def test_a_header_of_too_many_pixels_gives_its_size() -> None:
    error = refusal(png(14_000, 12_800))
    assert (error.status, error.size) == ("too_large", (14_000, 12_800))
    assert refusal(png(1_000_001, 1)).size == (1_000_001, 1)


@pytest.mark.parametrize("kind", ["AVIF", pytest.param("HEIF", marks=needs_heif)])
def test_a_bomb_is_refused_before_its_decoder_runs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), kind)
    place = data.index(b"ispe") + 8
    monkeypatch.setattr(decoding, "_by_pillow", lambda image: pytest.fail("decoded"))
    error = refusal(data[:place] + struct.pack(">II", 16_000, 16_000) + data[place + 8 :])
    assert error.status == "too_large"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_no_memory_for_one_picture(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def full(*given: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "resize_image", full)
    error = refusal(encoded(picture(), kind))
    assert (error.status, error.size) == ("too_large", (96, 64))


def test_an_error_holds_neither_bytes_nor_pixels() -> None:
    error = refusal(encoded(picture(), "JPEG")[:-300])
    assert (error.__cause__, error.__context__) == (None, None)
    frame, held = error.__traceback__, []
    while frame is not None:
        held += [name for name, value in frame.tb_frame.f_locals.items() if isinstance(value, Image.Image)]
        frame = frame.tb_next
    assert held == []


# --- places ---


def test_nothing_but_a_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    monkeypatch.setattr(image_files, "_without_waiting", lambda path, flags: pytest.fail(f"opened {path}"))
    for name, kind in (("pipe", "a pipe"), ("folder", "a folder"), ("device", "a device")):
        error = refusal(tmp_path / name)
        assert (str(error), error.status) == (f"{kind}, not a regular file", "not_a_file")


def test_what_becomes_a_pipe_meanwhile_does_not_stop_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    real = image_files._check_file
    monkeypatch.setattr(image_files, "_check_file", lambda status: stat.S_ISFIFO(status.st_mode) and looked(status))
    looks = []

    def looked(status: os.stat_result) -> None:
        looks.append(status)
        if len(looks) == 2:
            real(status)

    assert refusal(tmp_path / "pipe").status == "not_a_file"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FileNotFoundError(2, "No such file or directory"), "missing"),
        (NotADirectoryError(20, "Not a directory"), "missing"),
        (PermissionError(13, "Permission denied"), "unreadable"),
        (OSError(5, "Input/output error"), "unreadable"),
        (OSError(40, "Too many levels of symbolic links"), "unreadable"),
        (OSError(36, "File name too long"), "unreadable"),
        (OSError(116, "Stale file handle"), "unreadable"),
        (OSError(6, "No such device or address"), "not_a_file"),
        (OSError("image file is truncated"), "damaged"),
        (ValueError("one\ntwo"), "damaged"),
    ],
)
def test_the_status_of_an_error(error: Exception, status: str) -> None:
    with pytest.raises(ImageError) as caught, image_files.as_image_error():
        raise error
    assert caught.value.status == status
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nul\0.jpg", "surrogate\ud800.jpg"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    for source in (name, Path(name)):
        error = refusal(source)
        assert (str(error), error.status) == ("a name that no file can have", "missing")


def test_bytes_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.jpg").open("wb") as file:
        file.truncate(40 * 10**9)
    error = refusal(tmp_path / "x.jpg")
    assert (str(error), error.status) == ("40,000,000,000 bytes, more than the 536,870,912 allowed", "too_large")
    with pytest.raises(ImageError, match="9 bytes, more than the 8 allowed"):
        SPEC.decode(bytes(9), largest_file=8)


def test_an_array_has_a_size() -> None:
    decoded = SPEC.decode(np.zeros((7, 9), np.uint8), keep_damaged=True)
    assert (decoded.width, decoded.height, decoded.damage) == (9, 7, "")
