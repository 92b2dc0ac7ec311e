"""JPEG has Pillow's pixels to the bit, whatever its kind, and its damage is told."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from export.errors import ImageError
from pipeline.data import decode as decoding
from pipeline.data import jpeg
from pipeline.data.decode import DecodeSpec, load_image
from pipeline.data.resize import Resize, resize_image
from tests.fakes.jpeg_files import arithmetic, frame_changed, restart_markers, scan_of, ycck

MODES = ("stretch", "crop", "imagenet", "pad")


def picture(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encode(image: Image.Image, **options: object) -> bytes:
    image.save(file := io.BytesIO(), "JPEG", **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    """What was decoded before simplejpeg: Pillow's picture, turned and in RGB, at its own size."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    return np.asarray(image.convert("RGB"))


def whole(data: bytes) -> np.ndarray:
    known = load_image(data, (1, 1))
    return load_image(data, (known.height, known.width)).pixels


@pytest.fixture
def by_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which Pillow has decoded after all."""
    monkeypatch.setattr(decoding, "_by_pillow", lambda image: pytest.fail("decoded by Pillow"))


GRID = list(product(("RGB", "L", "CMYK", "rgb layers"), (30, 95), (0, 1, 2), (False, True), (0, 3)))


@pytest.mark.usefixtures("by_simplejpeg")
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 9), (16, 16), (33, 65), (64, 31)])
def test_every_kind_has_pillows_pixels(height: int, width: int) -> None:
    for kind, quality, subsampling, progressive, restarts in GRID:
        image = picture(height, width, "RGB" if kind == "rgb layers" else kind)
        coarse = 0 if kind == "CMYK" else subsampling
        layers = {"keep_rgb": True} if kind == "rgb layers" else {"subsampling": coarse}
        data = encode(image, quality=quality, progressive=progressive, restart_marker_blocks=restarts, **layers)
        assert np.array_equal(whole(data), by_pillow(data)), (kind, quality, subsampling, progressive, restarts)


@pytest.mark.usefixtures("by_simplejpeg")
@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "4:1:1"]),
    progressive=st.booleans(),
    restarts=st.integers(0, 9),
    turn=st.integers(0, 9),
    resize=st.sampled_from(MODES),
)
def test_any_picture_has_pillows_pixels(
    size: tuple[int, int], mode: str, quality: int, subsampling: str, progressive: bool, restarts: int, turn: int,
    resize: str,
) -> None:  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"quality": quality, "progressive": progressive, "restart_marker_blocks": restarts, "exif": exif}
    coarse = "4:4:4" if mode == "CMYK" else subsampling
    data = encode(picture(*size, mode, quality), subsampling=coarse, **options)
    expected = resize_image(Image.fromarray(by_pillow(data)), (24, 20), resize)
    received = load_image(data, (24, 20), resize)
    assert np.array_equal(received.pixels, expected)
    assert (received.height, received.width) == by_pillow(data).shape[:2]


@pytest.mark.usefixtures("by_simplejpeg")
def test_rare_kinds_have_pillows_pixels() -> None:
    for data in (ycck(), ycck((33, 17)), arithmetic(), restart_markers(picture(40, 50))):
        assert np.array_equal(whole(data), by_pillow(data))
    image = picture(40, 50)
    image.save(file := io.BytesIO(), "MPO", save_all=True, append_images=[picture(40, 50, seed=1)])
    assert Image.open(file).format == "MPO"
    assert np.array_equal(whole(file.getvalue()), by_pillow(encode(image)))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_picture_of_a_camera_that_was_held_upright(turn: int, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    for shape in ((60, 80), (300, 20), (20, 300)):
        data = encode(picture(*shape, mode), exif=exif)
        for resize in MODES:
            for size in ((24, 24), (40, 13), by_pillow(data).shape[:2]):
                expected = resize_image(Image.fromarray(by_pillow(data)), size, resize)
                assert np.array_equal(load_image(data, size, resize).pixels, expected), (shape, resize, size)


def test_a_turned_picture_that_would_fill_the_memory_is_turned_before(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    data = encode(picture(9, 300), exif=exif)
    monkeypatch.setattr(decoding, "SCRATCH", 300 * 24 - 1)
    monkeypatch.setattr(decoding, "Turned", lambda *given, **more: pytest.fail("300 x 24 pixels between two passes"))
    expected = resize_image(Image.fromarray(by_pillow(data)), (24, 24), "stretch")
    assert np.array_equal(load_image(data, (24, 24)).pixels, expected)


# --- what simplejpeg does not decode, Pillow does ---


def test_a_sampling_that_simplejpeg_does_not_know_is_decoded_by_pillow() -> None:
    data = bytearray(encode(Image.new("RGB", (16, 8), (128, 128, 128)), subsampling="4:4:4"))
    data[data.index(b"\xff\xc0") + 14] = 0x21  # the second layer is the finest
    start, end = scan_of(bytes(data))
    data[start:end] = b"\x28\x00\x3f"  # four blocks without a difference: 001010 0000 0000 0000, filled up with ones
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(bytes(data))
    assert (load_image(bytes(data), (8, 16)).pixels == 128).all()


@pytest.mark.parametrize("subsampling", [1, 2])
def test_cmyk_of_coarse_layers_is_decoded_by_pillow(subsampling: int) -> None:
    data = encode(picture(33, 50, "CMYK"), subsampling=subsampling)
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(data, "CMYK")
    assert np.array_equal(whole(data), by_pillow(data))


def of_another_revision(data: bytes) -> bytes:
    return data[:11] + b"\x09" + data[12:]


def of_another_transform(data: bytes) -> bytes:
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x09"
    return data[:2] + adobe + data[20:]  # in place of the JFIF segment


@pytest.mark.parametrize("changed", [of_another_revision, of_another_transform])
def test_what_libjpeg_warns_of_without_harm_is_no_damage(changed: Callable[[bytes], bytes]) -> None:
    data = encode(picture(24, 24))
    with pytest.raises(ValueError, match=r"[Uu]nknown"):
        simplejpeg.decode_jpeg(changed(data))
    assert np.array_equal(whole(changed(data)), by_pillow(data))


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"bits": 12}, "12 bits"), ({"marker": 0xC3}, "lossless"), ({"marker": 0xC5}, "hierarchical"),
     ({"layers": 2}, "2 colour layers")],
)  # fmt: skip
def test_a_kind_that_nothing_here_decodes_is_named(given: dict[str, int], reason: str) -> None:
    with pytest.raises(ImageError, match=f"a .*{reason}.*; save it as an ordinary JPEG") as caught:
        load_image(frame_changed(encode(picture(24, 40)), **given), (8, 8))
    assert (caught.value.status, caught.value.size) == ("unsupported", (40, 24))


# --- damage ---


def spoilt() -> dict[str, bytes]:
    data = encode(picture(96, 96), quality=90)
    restarts = restart_markers(picture(96, 96))
    start, end = scan_of(data)
    return {
        "premature end of data segment": data[: (start + end) // 2] + b"\xff\xd9",
        "Premature end of JPEG file": data[: (start + end) // 2],
        "Premature end": data[:-1],
        "extraneous bytes before marker 0xd9": data[:-2] + bytes(40) + b"\xff\xd9",
        "found marker 0xd5 instead of RST3": restarts.replace(b"\xff\xd3", b"\xff\xd5", 1),
    }


@pytest.mark.parametrize("reason", spoilt())
def test_damage_that_pillow_passes_is_told(reason: str) -> None:
    data = spoilt()[reason]
    spec = DecodeSpec((24, 24), "stretch")
    with pytest.raises(ImageError, match=reason) as caught:
        spec.pixels(data)
    assert (caught.value.status, caught.value.size) == ("damaged", (96, 96))
    kept = spec.decode(data, keep_damaged=True)
    assert reason in kept.damage
    sound = spec.decode(encode(picture(96, 96), quality=90), keep_damaged=True)
    assert sound.damage == ""
    upper = np.abs(kept.pixels[:8].astype(int) - sound.pixels[:8]).max()
    assert upper < 40, "what comes before the damage is the picture"


def test_damage_in_the_header_is_kept_by_pillow() -> None:
    data = encode(picture(48, 48))
    place = data.index(b"\xff\xc0")
    spoilt = data[:place] + bytes(3) + data[place:]
    with pytest.raises(ImageError, match="3 extraneous bytes"):
        load_image(spoilt, (48, 48))
    kept = load_image(spoilt, (48, 48), keep_damaged=True)
    assert "3 extraneous bytes" in kept.damage
    assert np.array_equal(kept.pixels, by_pillow(data))


def test_a_damaged_picture_of_another_format_is_not_kept() -> None:
    picture(48, 48).save(file := io.BytesIO(), "PNG")
    with pytest.raises(ImageError) as caught:
        load_image(file.getvalue()[:-200], (8, 8), keep_damaged=True)
    assert (caught.value.status, caught.value.size) == ("damaged", (48, 48))


def test_the_size_of_a_damaged_picture_is_that_of_the_upright_one() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(ImageError) as caught:
        load_image(encode(picture(96, 48), exif=exif)[:-100], (8, 8))
    assert caught.value.size == (96, 48)


def test_too_little_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **more: object) -> None:
        raise ValueError("Insufficient memory (case 4)")

    data = encode(picture(24, 40))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    with pytest.raises(ImageError, match="more than fits into the memory") as caught:
        load_image(data, (8, 8))
    assert (caught.value.status, caught.value.size) == ("too_large", (40, 24))


# --- memory that a thread uses again ---


def in_a_new_thread(function: Callable[[], object]) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_keeps_memory_for_ordinary_pictures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "KEPT_PIXELS", 100 * 100)

    def kept(*sides: int) -> int:
        for side in sides:
            load_image(encode(Image.new("RGB", (side, side))), (8, 8))
        memory = getattr(jpeg._thread, "memory", None)
        return 0 if memory is None else memory.size

    assert in_a_new_thread(lambda: kept(100)) == 4 * 100 * 100
    assert in_a_new_thread(lambda: kept(50, 100, 20)) == 4 * 100 * 100
    assert in_a_new_thread(lambda: kept(101)) == 0
    assert in_a_new_thread(lambda: kept(50, 101)) == 4 * 50 * 50


def test_what_a_thread_may_keep_is_at_most_64_mib() -> None:
    assert 4 * jpeg.KEPT_PIXELS == 2**26


@pytest.mark.parametrize("mode", MODES)
def test_a_result_is_not_in_the_memory_that_is_used_again(mode: str) -> None:
    for kind in ("RGB", "L"):
        first = load_image(encode(picture(32, 32, kind)), (32, 32), mode).pixels
        before = first.copy()
        load_image(encode(picture(32, 32, kind, seed=1)), (32, 32), mode)
        assert np.array_equal(first, before)


def test_threads_do_not_share_it() -> None:
    files = [encode(picture(64, 64, seed=seed)) for seed in range(4)]
    expected = [by_pillow(data) for data in files]

    def many(index: int) -> bool:
        return all(np.array_equal(whole(files[index]), expected[index]) for _ in range(60))

    results: list[bool] = []
    threads = [threading.Thread(target=lambda n=n: results.append(many(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_a_scan_that_comes_twice_is_damage() -> None:
    """libjpeg overwrites what the scans between had refined, and only warns."""
    file = io.BytesIO()
    Image.effect_noise((32, 32), 60).convert("RGB").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    begin = data.index(b"\xff\xda")
    marker = re.compile(rb"\xff[^\0\xd0-\xd7]").search(data, begin + 2)
    assert marker
    with pytest.raises(ImageError, match="Inconsistent progression sequence") as caught:
        load_image(data[: marker.start()] + data[begin:], (8, 8))
    assert caught.value.status == "damaged"


# --- scaled while it is decoded ---


def smooth(height: int, width: int) -> Image.Image:
    """A picture without detail that any way of making it smaller would lose."""
    random = np.random.default_rng(3)
    return Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )


@pytest.mark.parametrize("mode", ["stretch", "crop", "imagenet", "pad"])
@pytest.mark.parametrize("turn", [1, 6])
def test_a_scaled_picture_is_nearly_the_whole_one_and_keeps_its_size(mode: Resize, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encode(smooth(720, 960), quality=95, exif=exif)
    whole, scaled = (DecodeSpec((24, 32), mode, jpeg_scaling=scaling).decode(data) for scaling in ("none", "dct"))
    assert (scaled.width, scaled.height) == (whole.width, whole.height) == ((960, 720) if turn == 1 else (720, 960))
    difference = np.abs(scaled.pixels.astype(int) - whole.pixels)
    assert 0 < difference.mean() < 1.5
    assert difference.max() < 12


def test_so_much_remains_that_resizing_smooths_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By libjpeg's eighths down to an eighth, and never below twice the sides, in the picture's own orientation."""
    sizes = []
    resize = decoding.resize_image
    monkeypatch.setattr(
        decoding, "resize_image", lambda image, *rest: (sizes.append(image.size), resize(image, *rest))[1]
    )
    for height, width, target, mode in (
        (720, 960, (24, 32), "stretch"), (720, 960, (90, 60), "stretch"), (720, 960, (80, 80), "imagenet"),
        (720, 960, (181, 32), "stretch"), (720, 960, (180, 240), "stretch"),
    ):  # fmt: skip
        DecodeSpec(target, mode, jpeg_scaling="dct").decode(encode(smooth(height, width)))
    assert sizes == [(120, 90), (240, 180), (360, 270), (960, 720), (480, 360)]


def test_without_scaling_nothing_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(smooth(720, 960))
    expected = DecodeSpec((24, 32), "stretch").pixels(data)
    assert np.array_equal(expected, resize_image(Image.fromarray(by_pillow(data)), (24, 32), "stretch"))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_print_colours_are_scaled_too(mode: str) -> None:
    data = encode(smooth(720, 960).convert(mode), quality=95)
    whole, scaled = (DecodeSpec((24, 32), "stretch", jpeg_scaling=scaling).pixels(data) for scaling in ("none", "dct"))
    assert 0 < np.abs(scaled.astype(int) - whole).mean() < 2


def test_damage_is_told_of_a_scaled_picture_too() -> None:
    data = encode(smooth(720, 960), quality=95)
    cut = DecodeSpec((24, 32), "stretch", jpeg_scaling="dct")
    with pytest.raises(ImageError) as told:
        cut.pixels(data[: len(data) // 2])
    assert told.value.status == "damaged"
    kept = cut.decode(data[: len(data) // 2], keep_damaged=True)
    assert (kept.width, kept.height, bool(kept.damage)) == (960, 720, True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("colours", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_what_was_decoded_stays_when_the_thread_decodes_the_next(mode: Resize, colours: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    first, second = (encode(picture(16, 16, colours, seed), exif=exif) for seed in (1, 2))
    for size in ((16, 16), (8, 8)):  # the first is the file's own: nothing is resized
        pixels = load_image(first, size, mode).pixels
        before = pixels.copy()
        other = load_image(second, size, mode).pixels
        assert not np.array_equal(other, before)
        assert not np.shares_memory(pixels, jpeg._memory(16 * 16 * 4))
        assert np.array_equal(pixels, before)
