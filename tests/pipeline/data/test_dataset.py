from __future__ import annotations

import io
import logging
import os
import tracemalloc
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from export.errors import DataError
from pipeline.artifacts.files import sha256_bytes
from pipeline.data.dataset import ImageSet, Pixels, load_image_set
from pipeline.data.decode import DecodeSpec
from pipeline.data.sample import DataMissingError, Sample
from pipeline.data.splits import roles_of
from pipeline.recipe.messages import EXTENSIONS
from pipeline.recipe.schema import SPLITS, Data, Splits


def png(seed: int, size: tuple[int, int] = (6, 5)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def grey(content: bytes) -> bytes:
    """A picture of one row with these pixels."""
    return b"P5 %d 1 255\n" % len(content) + content


def fill(root: Path, tree: dict[str, bytes]) -> Path:
    for name, data in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", {f"{name}/{i}.png": png(i + 100 * ord(name)) for name in "ab" for i in range(30)})


def load(root: Path, **options: object) -> ImageSet:
    return load_image_set(Data(source="folder", path=str(root), **options))


def where(images: ImageSet) -> dict[str, str]:
    return {s.sha256: split for split, samples in images.splits.items() for s in samples}


def fingerprints(images: ImageSet) -> dict[str, str]:
    return {split: images.fingerprint(split) for split in SPLITS}


def sample(content: bytes) -> Sample:
    return Sample("x", 0, sha256_bytes(content), lambda: content)


def split_of(image: Sample, config: Data) -> str:
    split = roles_of(config, {image.ready}, trains=True).split_of(image)
    assert split is not None
    return split


# --- membership ---


@settings(max_examples=60, deadline=None)
@given(
    kept=st.sets(st.binary(min_size=1, max_size=4), min_size=2, max_size=12),
    others=st.sets(st.binary(min_size=5, max_size=8), max_size=8),
    salt=st.text("abc", max_size=3),
)
def test_adding_removing_or_changing_an_image_moves_no_other(tmp_path_factory, kept, others, salt) -> None:
    before = fill(tmp_path_factory.mktemp("d"), {f"{len(c) % 2}/{c.hex()}.pgm": grey(c) for c in kept} | _two_classes())
    after = fill(
        tmp_path_factory.mktemp("d"), {f"{len(c) % 2}/{c.hex()}.pgm": grey(c) for c in kept | others} | _two_classes()
    )
    first, second = where(load(before, salt=salt)), where(load(after, salt=salt))
    assert first.items() <= second.items()
    assert len(second) == len(first) + len(others)


def _two_classes() -> dict[str, bytes]:
    return {"0/always.pgm": grey(b"always here"), "1/always.pgm": grey(b"always there")}


@settings(max_examples=100)
@given(
    shares=st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda s: sum(s) > 0.01),
    content=st.binary(max_size=20),
    salt=st.text(max_size=4),
)
def test_every_image_has_one_split_whose_share_is_above_zero(shares, content, salt) -> None:
    config = Data(splits=Splits(*shares), salt=salt)
    split = split_of(sample(content), config)
    assert getattr(config.splits, split) > 0
    assert split_of(replace(sample(content), name="y", label=1), config) == split


@pytest.mark.parametrize("shares", [(0.6, 0.1, 0.1, 0.2), (0.25, 0.25, 0.25, 0.25), (0.3, 0, 0, 0.3), (1, 1, 1, 1)])
def test_shares_are_roughly_as_asked(shares: tuple[float, ...]) -> None:
    splits = Splits(*shares)
    counts = Counter(split_of(sample(str(i).encode()), Data(splits=splits)) for i in range(4000))
    for name in SPLITS:
        assert counts[name] / 4000 == pytest.approx(getattr(splits, name) / sum(shares), abs=0.03)


def test_more_for_one_split_moves_only_what_it_must() -> None:
    """Test comes first in the order of the hash ranges: the test images stay test images when other shares change."""
    samples = [sample(str(i).encode()) for i in range(500)]
    first = [split_of(s, Data(splits=Splits(0.6, 0.1, 0.1, 0.2))) for s in samples]
    second = [split_of(s, Data(splits=Splits(0.5, 0.1, 0.2, 0.2))) for s in samples]
    assert [a == "test" for a in first] == [b == "test" for b in second]
    assert [a == "validation" for a in first] == [b == "validation" for b in second]


def test_another_salt_is_another_split(photos: Path) -> None:
    assert where(load(photos)) != where(load(photos, salt="x"))


def test_splits_are_disjoint_sorted_and_complete(photos: Path) -> None:
    images = load(photos)
    contents = [s.sha256 for samples in images.splits.values() for s in samples]
    assert len(contents) == len(set(contents)) == 60
    assert set(contents) == {sha256_bytes(p.read_bytes()) for p in photos.rglob("*.png")}
    for split in SPLITS:
        digests = [s.sha256 for s in images.splits[split]]
        assert digests == sorted(digests)
    assert images.classes == ("a", "b")
    assert all(images.classes[s.label] == s.name.split("/")[0] for s in images.splits["train"])


def test_copies_are_counted_and_on_one_side(photos: Path) -> None:
    before = load(photos)
    for name in ("a/copy.png", "a/deep/er/another.PNG"):
        fill(photos, {name: (photos / "a/3.png").read_bytes()})
    after = load(photos)
    assert (before.duplicates, after.duplicates) == (0, 2)
    assert where(after) == where(before)
    assert fingerprints(after) == fingerprints(before)


def test_a_picture_in_two_classes_is_refused(photos: Path) -> None:
    fill(photos, {"b/twin.png": (photos / "a/3.png").read_bytes()})
    with pytest.raises(DataError, match=r"a/3\.png \(a\) and b/twin\.png \(b\) are the same picture"):
        load(photos)


# --- fingerprints ---


def test_names_and_times_change_no_fingerprint(photos: Path) -> None:
    before = load(photos)
    (photos / "a/3.png").rename(photos / "a/zzz.png")
    (photos / "a/4.png").rename(photos / "a/0000.jpeg")
    os.utime(photos / "b/7.png", (1, 1))
    fill(photos, {"notes.txt": b"x", "a/Thumbs.db": b"x", ".hidden/9.png": png(9)})
    moved = photos.rename(photos.with_name("elsewhere"))
    after = load(moved)
    assert fingerprints(after) == fingerprints(before)
    assert after.classes == before.classes


def test_changed_bytes_change_the_splits_they_leave_and_enter_only(photos: Path) -> None:
    before = load(photos)
    old = sha256_bytes((photos / "a/3.png").read_bytes())
    fill(photos, {"a/3.png": png(999)})
    after = load(photos)
    affected = {where(before)[old], where(after)[sha256_bytes(png(999))]}
    changed = {s for s in SPLITS if before.fingerprint(s) != after.fingerprint(s)}
    assert changed == affected
    rest = where(before)
    del rest[old]
    assert rest.items() <= where(after).items()


def test_another_class_changes_the_fingerprint(photos: Path) -> None:
    before = load(photos)
    (photos / "a/3.png").rename(photos / "b/moved.png")
    after = load(photos)
    assert where(after) == where(before)
    changed = [s for s in SPLITS if before.fingerprint(s) != after.fingerprint(s)]
    assert changed == [where(before)[sha256_bytes((photos / "b/moved.png").read_bytes())]]


def test_the_table_names_what_is_there(photos: Path) -> None:
    rows = load(photos).table("test")
    assert rows
    for row in rows:
        assert sha256_bytes((photos / row["name"]).read_bytes()) == row["sha256"]
        assert row["class"] == row["name"].split("/")[0]


# --- what is refused ---


def refused(root: Path, kind: type[DataError] = DataError, source: str = "folder") -> str:
    with pytest.raises(kind) as info:
        load_image_set(Data(source=source, path=str(root)))
    return str(info.value)


@pytest.mark.parametrize("source", ["folder", "npz"])
def test_missing(tmp_path: Path, source: str) -> None:
    message = refused(tmp_path / "nowhere", DataMissingError, source)
    assert "nowhere, which does not exist" in message
    assert "--set data.path=" in message


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").write_text("x")
    assert "photos, which is a file" in refused(tmp_path / "photos")


def test_no_images(tmp_path: Path) -> None:
    assert "with 0 subfolders and no image in them" in refused(tmp_path)
    fill(tmp_path, {"a/readme.txt": b"x", "b/x.pdf": b"x", "top.png": png(1)})
    message = refused(tmp_path)
    assert "with 2 subfolders and no image in them (1 .pdf, 1 .txt, 1 image in no class folder)" in message
    (tmp_path / "top.png").unlink()
    assert f"Images end in {', '.join(sorted(EXTENSIONS))}; convert others." in refused(tmp_path)


def test_one_class(tmp_path: Path) -> None:
    fill(tmp_path, {"only/1.png": png(1), "only/2.png": png(2)})
    message = refused(tmp_path)
    assert "at least two classes" in message
    assert "only" in message


def test_an_empty_class_folder_is_left_out_aloud(photos: Path, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    (photos / "aa").mkdir()
    fill(photos, {"ab/readme.txt": b"x"})
    images = load(photos)
    assert images.classes == ("a", "b")
    assert "class folder" in caplog.text
    assert "aa" in caplog.text
    assert {images.classes[s.label] for samples in images.splits.values() for s in samples} == {"a", "b"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(photos: Path) -> None:
    (photos / "a/3.png").chmod(0)
    message = refused(photos)
    assert "a/3.png" in message
    assert "Permission denied" in message


def test_a_file_that_cannot_be_opened(photos: Path) -> None:
    (photos / "a/3.png").unlink()
    (photos / "a/3.png").symlink_to(photos / "gone.png")
    assert load(photos).duplicates == 0, "a link to nothing is no file"


# --- npz ---


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (40, 8, 7), dtype=np.uint8),
        "y_train": np.arange(40) % 3,
        "x_test": random.integers(0, 256, (20, 8, 7), dtype=np.uint8),
        "y_test": np.arange(20) % 3,
    }


def test_npz(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "toy.npz"
    np.savez(path, **arrays)
    images = load_image_set(Data(source="npz", path=str(path)))
    assert images.classes == ("0", "1", "2")
    samples = [s for split in images.splits.values() for s in split]
    assert len(samples) == 60
    assert all(s.path is None for s in samples)
    by_name = {s.name: s for s in samples}
    assert np.array_equal(by_name["toy/41"].read(), arrays["x_test"][1])
    assert by_name["toy/41"].label == 1
    np.savez_compressed(tmp_path / "again.npz", **arrays)
    again = load_image_set(Data(source="npz", path=str(tmp_path / "again.npz")))
    assert fingerprints(again) == fingerprints(images), "by the arrays, not by the file"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": None}, "x_train"),
        ({"y_test": None}, "y_test"),
        ({"x_train": np.zeros((40, 8, 7))}, "uint8 images of shape"),
        ({"x_train": np.zeros((40, 8, 7), np.float32), "x_test": np.zeros((20, 8, 7), np.float32)}, "float32"),
        ({"y_train": np.zeros(39, int)}, r"\(39,\)"),
        ({"y_train": np.array(["cat"] * 40)}, "cat"),
        ({"x_train": np.zeros((40, 7), np.uint8), "x_test": np.zeros((20, 7), np.uint8)}, r"\(40, 7\)"),
        ({"y_train": np.array([None] * 40, object)}, "Object arrays"),
    ],
)
def test_npz_of_another_layout(tmp_path: Path, arrays, change: dict, message: str) -> None:
    path = tmp_path / "toy.npz"
    np.savez(path, **{name: array for name, array in (arrays | change).items() if array is not None})
    with pytest.raises(DataError, match=message) as info:
        load_image_set(Data(source="npz", path=str(path)))
    assert "toy.npz" in str(info.value)


def test_npz_that_is_text_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("hello")
    for path in (tmp_path / "x.npz", tmp_path):
        assert "the layout of keras.datasets" in refused(path, source="npz")


@pytest.mark.parametrize("damage", ["truncated", "empty", "altered", "npy"])
def test_npz_that_is_damaged(tmp_path: Path, arrays, damage: str) -> None:
    path = tmp_path / "toy.npz"
    np.savez(path, **arrays)
    data = path.read_bytes()
    if damage == "npy":
        with path.open("wb") as file:
            np.save(file, arrays["x_train"])
    else:
        altered = data[:300] + bytes([data[300] ^ 255]) + data[301:]
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "altered": altered}[damage])
    assert "toy.npz" in refused(path, source="npz")


@pytest.mark.parametrize(
    "change",
    [
        {"y_train": np.eye(3)[np.arange(40) % 3], "y_test": np.eye(3)[np.arange(20) % 3]},
        {"x_train": np.zeros((0, 8, 7), np.uint8), "y_train": np.zeros(0, int),
         "x_test": np.zeros((0, 8, 7), np.uint8), "y_test": np.zeros(0, int)},
        {"y_train": np.full(40, -1)},
    ],
    ids=["one-hot", "empty", "negative"],
)  # fmt: skip
def test_npz_with_other_labels_is_refused(tmp_path: Path, arrays, change: dict) -> None:
    path = tmp_path / "toy.npz"
    np.savez(path, **(arrays | change))
    assert "label" in refused(path, source="npz")


def test_npz_with_a_column_of_labels(tmp_path: Path, arrays) -> None:
    """As keras.datasets.cifar10 has them."""
    path = tmp_path / "toy.npz"
    columns = {"y_train": arrays["y_train"][:, None], "y_test": arrays["y_test"][:, None]}
    np.savez(path, **(arrays | columns))
    images = load_image_set(Data(source="npz", path=str(path)))
    np.savez(path, **arrays)
    assert fingerprints(images) == fingerprints(load_image_set(Data(source="npz", path=str(path))))


# --- Pixels ---


@pytest.fixture
def spoilt(photos: Path) -> list[Sample]:
    """20 samples, three of them unreadable."""
    bad = {"a/bad1.png": png(1)[:50], "a/bad2.png": b"", "b/bad3.png": b"no image"}
    samples = [s for split in load(photos).splits.values() for s in split]
    fill(photos, bad)
    samples += [Sample(name, 0, name, partial(Path, photos / name), photos / name) for name in bad]
    samples.sort(key=lambda s: s.name)
    bad = [s for s in samples if "bad" in s.name]
    good = [s for s in samples if "bad" not in s.name]
    return [good[0], bad[0], *good[1:9], bad[1], *good[9:17], bad[2]]


def test_batches_keep_order_and_rows(spoilt: list[Sample]) -> None:
    pixels = Pixels(DecodeSpec((4, 6), "stretch"), 3)
    batches = list(pixels.batches(spoilt, 4, "x"))
    assert [len(p) for p, _ in batches] == [4, 4, 4, 4, 1]
    good = [s for s in spoilt if "bad" not in s.name]
    assert np.concatenate([y for _, y in batches]).tolist() == [s.label for s in good]
    rows = np.concatenate([p for p, _ in batches])
    assert rows.dtype == np.uint8
    assert np.array_equal(rows, np.stack([pixels.load(s) for s in good]))
    at_once, labels = Pixels(DecodeSpec((4, 6), "stretch"), 3).all(spoilt, "x")
    assert np.array_equal(at_once, rows)
    assert labels.dtype == np.int64


def test_unreadable_images_are_named_up_to_the_limit(spoilt: list[Sample]) -> None:
    pixels = Pixels(DecodeSpec((4, 4), "stretch"), 3)
    rows, _ = pixels.all(spoilt, "x")
    assert len(rows) == len(spoilt) - 3
    assert set(pixels.skipped) == {"a/bad1.png", "a/bad2.png", "b/bad3.png"}
    assert pixels.skipped["a/bad2.png"] == "the file is empty"
    assert pixels.skipped["b/bad3.png"] == "not an image that Pillow can read"


def test_unreadable_images_above_the_limit(spoilt: list[Sample]) -> None:
    with pytest.raises(DataError) as info:
        Pixels(DecodeSpec((4, 4), "stretch"), 1).all(spoilt, "x")
    message = str(info.value)
    assert "at most 1 unreadable image (data.max_bad_images). Received: 3 of 20:" in message
    assert "a/bad1.png: " in message
    assert "a/bad2.png: the file is empty" in message
    assert "b/bad3.png: not an image" in message, "all of them, though the second is one too many"
    assert "--set data.max_bad_images=3" in message


def test_a_file_that_went_away(photos: Path) -> None:
    first = load(photos).splits["train"][0]
    first.path.unlink()
    pixels = Pixels(DecodeSpec((4, 4), "stretch"), 1)
    assert len(pixels.all([first], "x")[0]) == 0
    assert pixels.skipped == {first.name: "No such file or directory"}


def test_no_samples() -> None:
    rows, labels = Pixels(DecodeSpec((4, 5), "stretch"), 0).all([], "x")
    assert rows.shape == (0, 4, 5, 3)
    assert labels.shape == (0,)


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 3)])
def test_arrays_decode_like_files(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(array.squeeze()).save(tmp_path / "x.png")
    pixels = Pixels(DecodeSpec((5, 5), "crop"), 0)
    from_array = pixels.load(Sample("a", 0, "", lambda: array))
    from_file = pixels.load(Sample("b", 0, "", lambda: tmp_path / "x.png"))
    assert np.array_equal(from_array, from_file)


def test_digits_come_with_the_environment() -> None:
    images = load_image_set(Data(source="digits"))
    assert images.classes == tuple("0123456789")
    assert sum(len(s) for s in images.splits.values()) + images.duplicates == 1797
    arrays = [s.read() for s in images.splits["test"]]
    assert max(a.max() for a in arrays) == 255
    assert {(a.shape, a.dtype) for a in arrays} == {((8, 8), np.dtype(np.uint8))}


def test_decoded_images_are_held_once() -> None:
    size, picture = (128, 128), np.zeros((128, 128, 3), np.uint8)
    samples = [Sample(str(number), number % 2, "", lambda: picture) for number in range(600)]
    tracemalloc.start()
    pixels, labels = Pixels(DecodeSpec(size, "stretch"), 0).all(samples, "images")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pixels.shape == (600, *size, 3)
    assert labels.tolist() == [0, 1] * 300
    assert peak < 1.7 * pixels.nbytes
