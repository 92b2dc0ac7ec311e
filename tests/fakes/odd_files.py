"""Odd and damaged image files and paths, each with the status that is promised for it.

`CONTENTS` has one row for each cause and format: the file's name, its status, and the cause. Where a format has no
checksum, as BMP, PPM and the strips of a TIFF, changed bytes are other pixels, which nobody can tell from the picture:
such a row promises "ok" and says so. The same holds for what Pillow's decoders accept: the body of AVIF, HEIC and
JPEG 2000, and JPEG inside a TIFF.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.fakes.jpeg_files import arithmetic, frame_changed, restart_markers, scan_of, ycck

HEIC = importlib.util.find_spec("pillow_heif") is not None
WIDTH, HEIGHT = 96, 64


class OddFile(NamedTuple):
    """A path to classify.

    Attributes:
        path: it may be one that no file can have.
        status: "ok", or one of `export.errors.ImageStatus`.
        cause: what is odd about it, with the format.
    """

    path: Path
    status: str
    cause: str


def picture() -> Image.Image:
    """A picture with detail in every block, so that no damage falls on a plain area."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + random.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The file of a picture."""
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.from_pillow(image).save(file := io.BytesIO(), **options)
        return file.getvalue()
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def overwritten(data: bytes, start: float, length: int = 100, value: int | None = None) -> bytes:
    """The file with bytes replaced from a part of it on: by noise, or by one value."""
    place = int(len(data) * start)
    noise = np.random.default_rng(1).integers(0, 256, length, dtype=np.uint8).tobytes()
    return data[:place] + (noise if value is None else bytes([value]) * length) + data[place + length :]


def png(width: int, height: int, colour: int = 2, bits: int = 8) -> bytes:
    """The header of a PNG, and hardly any data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def tiff(bits: int, layers: int, sample_format: int, data: bytes, photometric: int = 1, side: int = 2) -> bytes:
    """A TIFF with one strip of any type of values."""
    tags = (
        (256, side), (257, side), (258, bits), (259, 1), (262, photometric), (273, 8), (277, layers), (278, side),
        (279, len(data)), (339, sample_format),
    )  # fmt: skip
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags]
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def _exchanged(data: bytes, old: bytes, new: bytes) -> bytes:
    if old not in data:
        raise ValueError(f"{old!r} is not in the file")
    return data.replace(old, new)


def _contents() -> Iterator[tuple[str, bytes, str, str]]:
    """Name, content, status and cause of every file that is odd by its content."""
    image = picture()
    whole = {
        "jpg": encoded(image, "JPEG"), "png": encoded(image, "PNG"), "gif": encoded(image, "GIF"),
        "bmp": encoded(image, "BMP"), "webp": encoded(image, "WEBP"), "ppm": encoded(image, "PPM"),
        "tif": encoded(image, "TIFF"), "avif": encoded(image, "AVIF"), "jp2": encoded(image, "JPEG2000"),
        "j2k": encoded(image, "JPEG2000", no_jp2=True),
    }  # fmt: skip
    if HEIC:
        whole["heic"] = encoded(image, "HEIF")
    lzw, deflate = (encoded(image, "TIFF", compression=f"tiff_{kind}") for kind in ("lzw", "adobe_deflate"))
    progressive, restarts = encoded(image, "JPEG", progressive=True), restart_markers(image)
    jpeg = whole["jpg"]
    for ending, data in whole.items():
        yield f"whole.{ending}", data, "ok", "whole"
        yield f"truncated.{ending}", data[: int(len(data) * 0.9)], "damaged", "its end is missing"
        yield f"trailing.{ending}", data + b"x" * 50, "ok", "bytes after its end"
        start = 8 if ending in ("png", "gif") else 4 if ending in ("tif", "j2k") else 12
        status = "not_an_image" if ending == "bmp" else "damaged"
        yield f"begun.{ending}", data[:start] + b"\n" * (ending == "ppm"), status, "nothing but its first bytes"
        yield f"nowhere{'.png' if ending == 'jpg' else '.jpg'}.{ending}", data, "ok", "two endings"
    yield "none.jpg", b"", "not_an_image", "empty"
    yield "zeros.png", bytes(5000), "not_an_image", "zeros"
    yield "noise.gif", overwritten(bytes(5000), 0, 5000), "not_an_image", "noise"
    yield "text.jpg", b"This picture is not available.\n", "not_an_image", "text"
    yield "page.jpg", b"<!doctype html><html><body>404 Not Found</body></html>", "not_an_image", "HTML"
    yield "drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', "not_an_image", "SVG"
    yield "paper.jpg", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF\n", "not_an_image", "PDF"
    yield "program.jpg", EPS, "unsupported", "EPS, a program"
    yield "archive.jpg", _zip(), "not_an_image", "ZIP"
    yield "pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "not_an_image", "LFS"
    yield "png-named.jpg", whole["png"], "ok", "PNG by another name"
    yield "jpeg-named.png", jpeg, "ok", "JPEG by another name"
    # JPEG: kinds, and damage inside the scan
    yield "progressive.jpg", progressive, "ok", "progressive JPEG"
    yield "restarts.jpg", restarts, "ok", "JPEG with restart markers"
    yield "grey.jpg", encoded(image.convert("L"), "JPEG"), "ok", "grey JPEG"
    yield "cmyk.jpg", encoded(image.convert("CMYK"), "JPEG"), "ok", "CMYK JPEG"
    yield "ycck.jpg", ycck(), "ok", "YCCK JPEG"
    yield "rgb.jpg", encoded(image, "JPEG", keep_rgb=True), "ok", "JPEG of RGB layers"
    yield "arithmetic.jpg", arithmetic(), "ok", "arithmetic JPEG"
    yield "several.jpg", encoded(image, "MPO", save_all=True, append_images=[image]), "ok", "MPO"
    yield "turned.jpg", encoded(image, "JPEG", exif=_turned(6)), "ok", "EXIF-turned JPEG"
    yield "odd-exif.jpg", encoded(image, "JPEG", exif=b"Exif\0\0MM\0*garbage"), "ok", "JPEG with damaged EXIF"
    yield "12-bit.jpg", frame_changed(jpeg, bits=12), "unsupported", "12-bit JPEG"
    yield "lossless.jpg", frame_changed(jpeg, marker=0xC3), "unsupported", "lossless JPEG"
    yield "layers.jpg", frame_changed(jpeg, layers=2), "unsupported", "JPEG of two layers"
    start, end = scan_of(jpeg)
    middle = (start + end) // 2
    yield "scan-cut.jpg", jpeg[:middle] + b"\xff\xd9", "damaged", "JPEG scan that ends early, with an end marker"
    yield "scan-lost.jpg", jpeg[:middle] + jpeg[middle + 300 :], "damaged", "JPEG scan without its middle"
    yield "scan-zeros.jpg", overwritten(jpeg, 0.5, 400, 0), "damaged", "JPEG scan with zeros inside"
    yield "scan-noise.jpg", overwritten(jpeg, 0.6), "damaged", "JPEG scan with noise inside"
    yield "restart-lost.jpg", _exchanged(restarts, b"\xff\xd3", b"\xff\xd5"), "damaged", "JPEG with a wrong restart"
    yield "progressive-cut.jpg", progressive[: len(progressive) // 2], "damaged", "progressive JPEG cut"
    yield "progressive-noise.jpg", overwritten(progressive, 0.6), "damaged", "progressive JPEG with noise inside"
    yield "tables-lost.jpg", jpeg[:20] + jpeg[jpeg.index(b"\xff\xc0") :], "damaged", "JPEG without quantization tables"
    # other formats: damage inside, as far as their decoders can tell
    png_file = bytearray(whole["png"])
    png_file[png_file.index(b"IDAT") + 6] ^= 0xFF
    yield "data.png", bytes(png_file), "damaged", "PNG with changed data"
    crc = bytearray(whole["png"])
    crc[29] ^= 0xFF  # the first one's, after 8 + 8 + 13 bytes
    yield "crc.png", bytes(crc), "damaged", "PNG header with a wrong checksum"
    yield "body.gif", overwritten(whole["gif"], 0.6), "damaged", "GIF with noise inside"
    yield "body.webp", overwritten(whole["webp"], 0.6, 200), "damaged", "WebP with noise inside"
    yield "body-lzw.tif", overwritten(lzw, 0.6, 2000), "damaged", "TIFF strips of LZW with noise inside"
    yield "cut-lzw.tif", lzw[: len(lzw) // 2], "damaged", "TIFF without its directory, which lies at its end"
    yield "cut-deflate.tif", deflate[: len(deflate) // 2], "damaged", "deflated TIFF without its directory"
    for ending in ("bmp", "ppm", "tif", "avif", "jp2", *(["heic"] if HEIC else [])):
        yield f"body.{ending}", overwritten(whole[ending], 0.8, 60), "ok", "noise inside, which its decoder cannot tell"
    # pixels beyond the limits, in the header
    yield "bomb.png", png(30_000, 30_000), "too_large", "header of 900 megapixels, PNG"
    yield "line.png", png(1_000_001, 1), "too_large", "header of a million pixels in a row, PNG"
    yield "bomb.jpg", frame_changed(jpeg, size=(65_000, 65_000)), "too_large", "header of 4 gigapixels, JPEG"
    yield "bomb.gif", whole["gif"][:6] + b"\xff" * 4 + whole["gif"][10:], "too_large", "header of 4 gigapixels, GIF"
    yield (
        "bomb.bmp",
        whole["bmp"][:18] + struct.pack("<ii", 40_000, 40_000) + whole["bmp"][26:],
        "too_large",
        "BMP bomb",
    )
    yield "bomb.ppm", b"P6 60000 60000 255\n" + bytes(99), "too_large", "header of 3.6 gigapixels, PPM"
    yield "bomb.tif", tiff(8, 1, 1, bytes(4), side=60_000), "too_large", "header of 3.6 gigapixels, TIFF"
    small, large = struct.pack(">II", WIDTH, HEIGHT), struct.pack(">II", 60_000, 60_000)
    yield "bomb.jp2", _exchanged(whole["jp2"], struct.pack(">II", HEIGHT, WIDTH), large), "too_large", "JPEG 2000 bomb"
    large = struct.pack(">II", 16_000, 16_000)
    yield "bomb.avif", _exchanged(whole["avif"], b"ispe\0\0\0\0" + small, b"ispe\0\0\0\0" + large), *BOMB_AVIF
    if HEIC:
        padded = whole["heic"].index(b"ispe") + 8
        data = whole["heic"][:padded] + large + whole["heic"][padded + 8 :]
        yield "bomb.heic", data, "too_large", "header of 256 megapixels, HEIC"
    # values
    ramp = np.linspace(0, 65_535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    deep = Image.fromarray(ramp.astype(np.uint16))
    yield "float.tif", encoded(Image.fromarray(ramp.astype(np.float32)), "TIFF"), "unsupported", "float TIFF"
    yield "double.tif", tiff(64, 1, 3, np.ones(4).tobytes()), "unsupported", "double-precision TIFF"
    yield "float-rgb.tif", tiff(32, 3, 3, np.ones(12, np.float32).tobytes(), 2), "unsupported", "float RGB TIFF"
    yield "int32.tif", encoded(Image.fromarray(ramp.astype(np.int32)), "TIFF"), "unsupported", "32-bit TIFF"
    yield "signed16.tif", tiff(16, 1, 2, np.ones(4, np.int16).tobytes()), "unsupported", "signed 16-bit TIFF"
    yield "signed8.tif", tiff(8, 1, 2, bytes(4)), "unsupported", "signed 8-bit TIFF"
    yield "12-bit.tif", tiff(12, 1, 1, bytes(6)), "unsupported", "12-bit TIFF"
    yield "lab.tif", tiff(8, 3, 1, bytes(12), 8), "unsupported", "CIELAB TIFF"
    yield "float.pfm.ppm", b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 0.5, 1), "unsupported", "float PFM"
    yield "deep.tif", encoded(deep, "TIFF"), "ok", "16-bit TIFF"
    yield "deep.png", encoded(deep, "PNG"), "ok", "16-bit PNG"
    yield "deep.pgm", b"P5 2 1 65535\n" + struct.pack(">HH", 0x8000, 0xFFFF), "ok", "16-bit PGM"
    yield "palette.png", encoded(image.convert("P"), "PNG"), "ok", "palette PNG"
    yield "bilevel.tif", encoded(image.convert("1"), "TIFF", compression="group4"), "ok", "bilevel TIFF of a fax"
    yield "transparent.png", encoded(_transparent(image), "PNG"), "ok", "transparent PNG"
    yield "transparent.webp", encoded(_transparent(image), "WEBP"), "ok", "transparent WebP"
    yield "interlaced.gif", encoded(image, "GIF", interlace=1), "ok", "interlaced GIF"
    yield "cmyk.tif", encoded(image.convert("CMYK"), "TIFF"), "ok", "CMYK TIFF"
    yield "turned.png", encoded(image, "PNG", exif=_turned(3)), "ok", "EXIF-turned PNG"
    for ending, kind in (("gif", "GIF"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF")):
        frames = [image.rotate(angle) for angle in (90, 180)]
        yield f"animated.{ending}", encoded(image, kind, save_all=True, append_images=frames), "ok", "several frames"
    yield "one.png", encoded(Image.new("L", (1, 1), 9), "PNG"), "ok", "one pixel"
    yield "thin.png", encoded(Image.new("1", (60_000, 1), 1), "PNG"), "ok", "60,000 pixels by 1"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
BOMB_AVIF = ("too_large", "header of 256 megapixels, AVIF")


def _zip() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("x.jpg", b"x")
    return file.getvalue()


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _transparent(image: Image.Image) -> Image.Image:
    transparent = image.convert("RGBA")
    transparent.putalpha(image.convert("L"))
    return transparent


def _places(folder: Path, sound: bytes) -> Iterator[OddFile]:
    """Paths that are odd whatever they hold; those that this system or user cannot make are left out."""

    def named(name: str, make: Callable[[Path], object]) -> Path:
        make(folder / name)
        return folder / name

    def sparse(path: Path) -> None:
        with path.open("wb") as file:
            file.write(sound)
            file.truncate(40 * 10**9)

    def listening(path: Path) -> None:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
            before = os.getcwd()
            os.chdir(path.parent)  # an address has some hundred bytes at most
            try:
                server.bind(path.name)
            finally:
                os.chdir(before)

    yield OddFile(folder / "nothing.jpg", "missing", "no file")
    yield OddFile(named("inside.jpg", lambda p: p.write_bytes(sound)) / "x.jpg", "missing", "a file as folder")
    yield OddFile(named("folder.jpg", Path.mkdir), "not_a_file", "folder")
    yield OddFile(named("sparse.jpg", sparse), "too_large", "sparse file of 40 GB")
    yield OddFile(folder / ("n" * 296 + ".jpg"), "unreadable", "name of 300 bytes")
    yield OddFile(folder.joinpath(*["d" * 200] * 25, "x.jpg"), "unreadable", "path of more than 4,096 bytes")
    yield OddFile(folder / "nul\0.jpg", "missing", "NUL in the name")
    yield OddFile(named('spaces and\nlines, "quoted".jpg', lambda p: p.write_bytes(sound)), "ok", "odd characters")
    yield OddFile(named("link.jpg", lambda p: p.symlink_to(folder / "inside.jpg")), "ok", "link")
    yield OddFile(named("dangling.jpg", lambda p: p.symlink_to(folder / "gone.jpg")), "missing", "dangling link")
    yield OddFile(named("loop.jpg", lambda p: p.symlink_to(p)), "unreadable", "link to itself")
    yield OddFile(
        named("to-folder.jpg", lambda p: p.symlink_to(folder / "folder.jpg")), "not_a_file", "link to a folder"
    )
    yield OddFile(named("endless.jpg", lambda p: p.symlink_to("/dev/zero")), "not_a_file", "link to an endless device")
    yield OddFile(named("terminal.jpg", lambda p: p.symlink_to("/dev/tty")), "not_a_file", "link to a terminal")
    yield OddFile(named("pipe.jpg", os.mkfifo), "not_a_file", "pipe")
    yield OddFile(named("to-pipe.jpg", lambda p: p.symlink_to(folder / "pipe.jpg")), "not_a_file", "link to a pipe")
    yield OddFile(named("socket.jpg", listening), "not_a_file", "socket")
    with contextlib.suppress(OSError):  # some file systems take UTF-8 alone
        name = os.fsdecode(b"latin-\xe9.jpg")
        yield OddFile(named(name, lambda p: p.write_bytes(sound)), "ok", "name that is not UTF-8")
    if os.geteuid():

        def locked(path: Path) -> None:
            path.write_bytes(sound)
            path.chmod(0)

        yield OddFile(named("locked.jpg", locked), "unreadable", "no permission")


def make_odd_files(folder: Path) -> list[OddFile]:
    """Write every odd file below a folder, which must be there and empty; on POSIX systems.

    Returns:
        Each with the status that is promised. Of some paths nothing can be made; they are named all the same.
    """
    made = []
    for name, data, status, cause in _contents():
        (folder / name).write_bytes(data)
        made.append(OddFile(folder / name, status, f"{cause} ({Path(name).suffix})"))
    return [*made, *_places(folder, encoded(picture(), "JPEG"))]
