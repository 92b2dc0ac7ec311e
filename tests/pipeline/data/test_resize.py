"""Every mode of resizing, also of pictures that stand turned in their file, and as thin as a line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.data.resize import Turned, resize_image

MODES = ("stretch", "crop", "imagenet", "pad")


@pytest.mark.parametrize("mode", ["stretch", "crop"])
def test_the_exact_size_is_untouched(mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    received = resize_image(Image.fromarray(noise), (9, 7), mode)
    assert np.array_equal(received, noise)
    assert received.dtype == np.uint8


def test_stretch_shows_everything_and_crop_the_middle() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :10], wide[:, 10:20], wide[:, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image = Image.fromarray(wide)
    assert (resize_image(image, (10, 10), "crop") == [0, 255, 0]).all()
    stretched = resize_image(image, (10, 12), "stretch")
    assert (stretched[:, 0] == [255, 0, 0]).all()
    assert (stretched[:, -1] == [0, 0, 255]).all()
    tall = Image.fromarray(np.ascontiguousarray(wide.swapaxes(0, 1)))
    assert (resize_image(tall, (10, 10), "crop") == [0, 255, 0]).all()


@pytest.mark.parametrize("mode", ["stretch", "crop"])
def test_size_is_height_and_width(mode: str) -> None:
    assert resize_image(Image.new("RGB", (40, 30)), (8, 20), mode).shape == (8, 20, 3)


@pytest.mark.parametrize("mode", ["stretch", "crop"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_extreme_shapes(mode: str, size: tuple[int, int]) -> None:
    received = resize_image(Image.new("RGB", size, (9, 8, 7)), (32, 32), mode)
    assert (received == [9, 8, 7]).all()


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = resize_image(Image.fromarray(stripes), (8, 8))[:, 1:-1]
    assert np.abs(inner.astype(int) - 127).max() <= 2


def whole_then_centre(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """What "imagenet" means, computed the expensive way: the whole picture, then its middle."""
    height, width = size
    scale = max(width / image.width, height / image.height) * 8 / 7
    whole = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (whole.width - width) // 2, (whole.height - height) // 2
    return np.asarray(whole)[top : top + height, left : left + width]


@pytest.mark.parametrize("shape", [(300, 400), (333, 500), (500, 333), (97, 41), (37, 200), (64, 64), (150, 31)])
def test_imagenet_on_ordinary_photos_is_the_middle_of_the_whole_to_the_bit(shape: tuple[int, int]) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    for size in ((64, 64), (48, 40)):
        assert np.array_equal(resize_image(noise, size, "imagenet"), whole_then_centre(noise, size))


@pytest.mark.parametrize("shape", [(1200, 40), (30, 2000), (9, 171), (311, 7)])
def test_imagenet_on_long_pictures_is_that_within_one_grey_level(shape: tuple[int, int]) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    for size in ((64, 64), (48, 40)):
        received = resize_image(noise, size, "imagenet").astype(int)
        assert np.abs(received - whole_then_centre(noise, size)).max() <= 1


def striped(width: int, height: int) -> Image.Image:
    """A long picture: red, then green from 45 % to 55 % of its length, then blue."""
    length = max(width, height)
    line = np.zeros((length, 3), np.uint8)
    line[: length * 45 // 100, 0] = line[length * 45 // 100 : length * 55 // 100, 1] = line[length * 55 // 100 :, 2] = (
        255
    )
    return Image.fromarray(line[None] if width > height else line[:, None])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("width", "height"), [(1, 60_000), (60_000, 1), (1, 900_000), (900_000, 1)])
def test_a_picture_as_thin_as_a_line(monkeypatch: pytest.MonkeyPatch, mode: str, width: int, height: int) -> None:
    computed = []
    real = Image.Image.resize

    def resize(self, size, resample, box=None, **options):
        box = box or (0, 0, *self.size)
        rows = min(self.height, box[3] - box[1] + 2)  # Pillow resizes rows first, and keeps those it needs
        computed.append(max(size[0] * size[1], size[0] * rows if size[0] != self.width else 0))
        return real(self, size, resample, box, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    received = resize_image(striped(width, height), (224, 224), mode)
    assert max(computed) <= 2**24
    assert received.shape == (224, 224, 3)
    line = received if width > height else received.swapaxes(0, 1)
    if mode in ("crop", "imagenet"):
        assert (line == [0, 255, 0]).all()
    elif mode == "stretch":
        assert (line[:, [0, 50, 111, 180, 223]] == np.eye(3)[[0, 0, 1, 2, 2]] * 255).all()
    else:
        assert (line[111, [0, 50, 111, 180, 223]] == np.eye(3)[[0, 0, 1, 2, 2]] * 255).all()
        assert (np.delete(line, 111, 0) == 0).all()


# --- a picture that is stored turned ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["RGB", "L"])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_turned_picture_is_resized_as_if_it_had_been_turned_before(mode: str, kind: str, flipped: bool) -> None:
    random = np.random.default_rng(3)
    for shape in ((133, 171), (171, 40), (24, 32), (32, 24), (7, 300), (300, 7), (1, 5), (64, 24), (24, 99)):
        stored = Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)).convert(kind)
        method = Image.Transpose.ROTATE_90 if flipped else Image.Transpose.TRANSPOSE
        for size in ((24, 32), (200, 9), shape):
            expected = resize_image(stored.transpose(method), size, mode)
            assert np.array_equal(resize_image(Turned(stored, flipped), size, mode), expected), (shape, size)


def test_every_version_of_pillow_resizes_in_the_order_of_version_13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both passes round, so another order gives other pixels; it was rows first up to version 12."""
    random = np.random.default_rng(5)
    real, both = Image.Image.resize, []

    def rows_first(self: Image.Image, size: tuple[int, int], resample: int, box: tuple[float, ...]) -> Image.Image:
        width, height = size
        if box == (0, 0, *self.size):
            across, down = width != self.width, height != self.height
        else:
            across, down = (box[0], box[2]) != (0, width), (box[1], box[3]) != (0, height)
        both.append(across and down)
        part = real(self, (width, self.height), resample, (box[0], 0, box[2], self.height)) if across else self
        return real(part, size, resample, (0, box[1], width, box[3])) if down else part.copy()

    images = [Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in SHAPES]
    expected = [np.asarray(real(image, (32, 24), Image.Resampling.BILINEAR)) for image in images]
    monkeypatch.setattr(Image.Image, "resize", rows_first)
    assert all(np.array_equal(resize_image(image, (24, 32)), array) for image, array in zip(images, expected))
    assert {True, False} == set(both)


SHAPES = ((133, 171), (171, 40), (300, 31), (300, 7), (60, 32), (24, 99), (80, 60), (400, 300), (401, 140), (1000, 2))


def test_crop_is_what_pillow_calls_fit() -> None:
    random = np.random.default_rng(4)
    for shape in random.integers(1, 120, (40, 2)):
        image = Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8))
        for size in ((24, 32), (17, 17), (5, 90)):
            fitted = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
            assert np.array_equal(resize_image(image, size, "crop"), np.asarray(fitted))


def test_what_is_returned_is_a_copy() -> None:
    memory = np.full((4, 4, 3), 7, np.uint8)
    received = resize_image(Image.fromarray(memory), (4, 4))
    memory[:] = 0
    assert (received == 7).all()
    received[:] = 1
