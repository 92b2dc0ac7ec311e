"""Sources, ready-made splits, labels and resizing; downloads against a local server."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from export.errors import DataError, RecipeError
from export.files import ROOT
from pipeline.data import download
from pipeline.data.dataset import ImageSet, load_image_set
from pipeline.data.decode import array_to_image
from pipeline.data.download import DownloadError, fetch, fetch_dataset
from pipeline.data.resize import Resize, resize_image
from pipeline.data.sample import DataMissingError, natural_order
from pipeline.data.sources import MOST_CLASSES, _check_arrays
from pipeline.recipe.load import load_recipe
from pipeline.recipe.published_weights import Published
from pipeline.recipe.schema import SPLITS, Columns, Data, Divide, Shares, Splits

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not on this machine")


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path


def ready_made(root: Path, count: int = 40) -> Path:
    """train/, val/ and test/ with two classes each, every picture another."""
    for part, split in enumerate(("train", "val", "test")):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                picture(root / split / name / f"{index}.png", 10_000 * part + 1000 * label + index)
    return root


def names(images: ImageSet, split: str) -> set[str]:
    return {s.name for s in images.splits[split]}


def sizes(images: ImageSet) -> dict[str, int]:
    return {split: len(images.splits[split]) for split in SPLITS}


# --- ready-made splits ---


def test_ready_made_splits_stay_and_train_gives_what_is_missing(tmp_path: Path) -> None:
    images = load_image_set(Data(path=str(ready_made(tmp_path)), splits=Splits(0.5, 0.1, 0.5, 0.1)))
    assert images.classes == ("cat", "dog")
    assert {n.split("/")[0] for n in names(images, "test")} == {"test"}
    assert {n.split("/")[0] for n in names(images, "validation")} == {"val"}
    assert {n.split("/")[0] for n in names(images, "train") | names(images, "calibration")} == {"train"}
    assert sizes(images)["test"] == sizes(images)["validation"] == 80
    assert 20 < sizes(images)["calibration"] < 60


def test_ready_made_splits_can_be_divided_or_pooled(tmp_path: Path) -> None:
    root = ready_made(tmp_path)
    divide = Divide(train=Shares(train=1), validation=Shares(calibration=0.5, test=0.5))
    images = load_image_set(Data(path=str(root), divide=divide))
    assert sizes(images)["train"] == 80
    assert sizes(images)["validation"] == 0
    assert {n.split("/")[0] for n in names(images, "calibration")} == {"val"}
    assert {n.split("/")[0] for n in names(images, "test")} == {"val", "test"}
    pooled = load_image_set(Data(path=str(root), ready_splits=False))
    assert pooled.classes == ("test", "train", "val"), "then folders are classes"


def test_an_image_keeps_its_split_when_others_come_and_go(tmp_path: Path) -> None:
    root = ready_made(tmp_path)
    before = load_image_set(Data(path=str(root)))
    for index in range(0, 40, 3):
        (root / "train" / "cat" / f"{index}.png").unlink()
        picture(root / "train" / "dog" / f"new{index}.png", 90_000 + index)
    after = load_image_set(Data(path=str(root)))
    sides = {s.sha256: split for split in SPLITS for s in before.splits[split]}
    for split in SPLITS:
        for sample in after.splits[split]:
            assert sides.get(sample.sha256, split) == split


def test_of_copies_test_wins_then_validation(tmp_path: Path) -> None:
    root = ready_made(tmp_path, 4)
    for copy in ("train/cat/a.png", "val/cat/a.png", "test/cat/a.png", "train/dog/b.png", "val/dog/b.png"):
        picture(root / copy, 50_001 if copy.endswith("a.png") else 50_002)
    picture(root / "train" / "dog" / "b2.png", 50_002)
    picture(root / "test" / "dog" / "c.png", 50_003)
    picture(root / "test" / "dog" / "c2.png", 50_003)
    images = load_image_set(Data(path=str(root)))
    assert "test/cat/a.png" in names(images, "test")
    assert "val/dog/b.png" in names(images, "validation")
    everywhere = [s.sha256 for split in SPLITS for s in images.splits[split]]
    assert len(everywhere) == len(set(everywhere))
    assert images.duplicates == 5
    assert images.crossing == 4


def test_a_picture_in_two_classes(tmp_path: Path) -> None:
    root = ready_made(tmp_path, 3)
    picture(root / "train" / "cat" / "x.png", 50_005)
    picture(root / "test" / "dog" / "x.png", 50_005)
    config = Data(path=str(root))
    with pytest.raises(DataError, match=r"train/cat/x\.png \(cat\).*same picture.*duplicates_across_classes=drop"):
        load_image_set(config)
    images = load_image_set(replace(config, duplicates_across_classes="drop"))
    assert len(images.conflicts) == 1
    assert "test/dog/x.png (dog)" in images.conflicts[0]
    assert not any(n.endswith("x.png") for split in SPLITS for n in names(images, split))
    assert images.duplicates == 0


def test_splits_beside_classes_are_refused(tmp_path: Path) -> None:
    root = ready_made(tmp_path, 1)
    picture(root / "zebra" / "1.png", 77)
    with pytest.raises(DataError, match="zebra is no split"):
        load_image_set(Data(path=str(root)))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "bus", "test")):
        picture(tmp_path / name / "1.png", seed)
    assert load_image_set(Data(path=str(tmp_path))).classes == ("bus", "test", "train")


# --- labels ---


def test_labels_from_file_names(tmp_path: Path) -> None:
    for part, split in enumerate(("train", "test")):
        for index in range(12):
            picture(tmp_path / split / f"{index}_photo.png", 100 * part + index)
    config = Data(path=str(tmp_path), label_pattern=r"^(\d+)_")
    images = load_image_set(config)
    assert images.classes == tuple(str(i) for i in range(12)), "by value: 2 before 10"
    assert all(images.classes[s.label] == Path(s.name).name.partition("_")[0] for s in images.splits["test"])
    picture(tmp_path / "train" / "none.png", 999)
    with pytest.raises(DataError, match=r"label_pattern.*none\.png"):
        load_image_set(config)


@pytest.mark.parametrize("pattern", ["(", "no group"])
def test_a_label_pattern_must_be_one(tmp_path: Path, pattern: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({"data": {"path": "x", "label_pattern": pattern}}))
    with pytest.raises(RecipeError, match=r"data\.label_pattern"):
        load_recipe(recipe)


SLOW = [
    "((a+)+)$", "(a|a)*", "((ab|cd)*)$", "(a*)*b", r"(\w+\s?)+", r"((?:[a-z]+_)*)x", "(a?)" * 40, "((?:a?){40})",
    "(?>a+)+(b)", "(?:(?:(?=a){60000}){60000})(a)", "(.*)" * 5, "(?=(a+)+b)", "(a)(?(1)(a+)+|b)", "x((a|b?)+)",
]  # fmt: skip
QUICK = [
    "^(.)", "^([^_]+)_", r"(\d+)", r"^(\w+?)[-_]\d+\.jpe?g$", "(?:train|val)-([a-z]+)", r"(\w+)_(\w+)_(\d+)\.png",
    r"^(\w+)_(\w+)_(\w+)_(\d+)\.(?:png|jpg)$", r"^((?:[a-z]{2}-){3})", r"(\w+) \((\d+)\)\.(?:png|jpe?g)$", "([a-z]++)",
    r"(?i)^img[ _-]?\d{4}[ _-](?P<label>[^.]+)\.", "^(?!x)(a|b)(?<=a)", r"(cat|dog)\D*", r"(.)\1",
]  # fmt: skip


@pytest.mark.parametrize("pattern", SLOW)
def test_a_label_pattern_that_may_search_for_ever(tmp_path: Path, pattern: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({"data": {"path": "x", "label_pattern": pattern}}))
    with pytest.raises(RecipeError, match=r"data\.label_pattern: expected .* in little time.*Repeat a set"):
        load_recipe(recipe)


@pytest.mark.parametrize("pattern", QUICK)
def test_label_patterns_that_people_write(tmp_path: Path, pattern: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({"data": {"path": "x", "label_pattern": pattern}}))
    assert load_recipe(recipe).data.label_pattern == pattern


def test_numbers_of_thousands_of_digits_are_text() -> None:
    long = "1" * 5000
    assert natural_order(["b", long, "10", "2"]) == ["2", "10", long, "b"]


def table(path: Path, rows: list[str], header: str = "path,label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_one_table_with_a_split_column(tmp_path: Path) -> None:
    for index in range(6):
        picture(tmp_path / "photos" / f"{index}.png", index)
    rows = [f"photos/{i}.png,{'ab'[i % 2]},{('train', 'test', 'val')[i // 2]}" for i in range(6)]
    path = table(tmp_path / "labels.csv", rows, "path,label,split")
    images = load_image_set(Data(source="csv", path=str(path), splits=Splits(1, 0, 0, 0)))
    assert images.classes == ("a", "b")
    assert sizes(images) == {"test": 2, "validation": 2, "calibration": 0, "train": 2}
    table(path, ["photos/0.png,a,holdout"], "path,label,split")
    with pytest.raises(DataError, match=r"Expected a split.*line 2.*'holdout'"):
        load_image_set(Data(source="csv", path=str(path)))


def test_a_folder_of_tables_and_a_list_of_classes(tmp_path: Path) -> None:
    for index in range(6):
        picture(tmp_path / ("eval" if index < 3 else "calib") / f"{index}.png", index)
    table(tmp_path / "eval_labels.csv", [f"{i}.png,{i},me" for i in range(3)], "file,class_index,author")
    table(tmp_path / "calib_labels.csv", [f"{i}.png,2" for i in range(3, 6)], "file,class_index")
    (tmp_path / "classes.json").write_text(json.dumps([["n1", "crane"], ["n2", "crane"], ["n3", "owl"]]))
    config = Data(source="csv", path=str(tmp_path), columns=Columns("file", "class_index"))
    images = load_image_set(config)
    assert images.classes == ("crane (n1)", "crane (n2)", "owl")
    assert sizes(images) == {"test": 3, "validation": 0, "calibration": 3, "train": 0}
    assert {s.label for s in images.splits["calibration"]} == {2}
    table(tmp_path / "eval_labels.csv", ["0.png,7"], "file,class_index")
    with pytest.raises(DataError, match=r"names or positions of the 3 classes.*'7'"):
        load_image_set(config)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["a.png,x"], "file,label", r"data\.columns: expected path"),
        (["gone.png,x"], "path,label", r"1 of 1 do not exist, such as .*gone\.png"),
        ([",x"], "path,label", "a path and a label in line 2"),
        ([], "path,label", "at least one row"),
        (["a.png;x"], "path;label", "separated by semicolons; save it with commas"),
        (["a.png\tx"], "path\tlabel", "separated by tabs; save it with commas"),
        (["b.png,x"], "here.png,x", "first line is an image; add a line above it"),
        (["gone.png,x", "too.png,y"], "path,label", r"2 of 2 do not exist, such as .*gone\.png, .*too\.png"),
        (["a\\b.png,x"], "path,label", "relative to the table's folder, with / between folders"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, rows: list[str], header: str, message: str) -> None:
    picture(tmp_path / "here.png", 1)
    path = table(tmp_path / "labels.csv", rows, header)
    with pytest.raises(DataError, match=message):
        load_image_set(Data(source="csv", path=str(path)))


def test_tables_of_no_split_and_ready_splits_that_are_not_wanted(tmp_path: Path) -> None:
    for index in range(6):
        picture(tmp_path / "test" / f"{index}.png", index)
    table(tmp_path / "mine.csv", [f"test/{i}.png,{i % 2}" for i in range(6)])
    config = Data(source="csv", path=str(tmp_path), splits=Splits(1, 0, 0, 0))
    with pytest.raises(DataError, match=r"test_labels\.csv in .*Received: mine\.csv\. Or name one table"):
        load_image_set(config)
    (tmp_path / "mine.csv").rename(tmp_path / "test.csv")
    assert sizes(load_image_set(config))["test"] == 6
    assert sizes(load_image_set(replace(config, ready_splits=False)))["train"] == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"path,label\n\xff.png,x\n", "can't decode byte 0xff"), (b"path,label\n" + b"x" * 2**20, "1,048,576 characters")],
)
def test_a_table_that_is_no_text_or_one_long_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"Expected a CSV file in UTF-8.*{said}"):
        load_image_set(Data(source="csv", path=str(tmp_path / "labels.csv")))


def test_npz_parts_are_ready_made_splits(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    labels = np.arange(30) % 3
    path = tmp_path / "x.npz"
    np.savez(path, x_train=arrays[:20], y_train=labels[:20], x_test=arrays[20:], y_test=labels[20:])
    config = Data(source="npz", path=str(path), splits=Splits(0.8, 0.2, 0, 0.5))
    images = load_image_set(config)
    assert names(images, "test") == {f"x/{i}" for i in range(20, 30)}
    assert sizes(images)["train"] + sizes(images)["validation"] == 20
    pooled = load_image_set(replace(config, ready_splits=False))
    assert any(int(n[2:]) < 20 for n in names(pooled, "test"))
    np.savez(path, images=arrays)
    with pytest.raises(DataError, match="Received: images"):
        load_image_set(config)


class FakeBuilder:
    """What is used of tensorflow-datasets."""

    info = types.SimpleNamespace(features={"label": types.SimpleNamespace(names=["no", "yes"])})

    def download_and_prepare(self) -> None:
        pass

    def as_data_source(self) -> dict[str, list[dict[str, Any]]]:
        random = np.random.default_rng(0)
        make: Callable[[int], dict[str, Any]] = lambda i: {  # noqa: E731
            "image": random.integers(0, 256, (5, 5, 3), dtype=np.uint8),
            "label": i % 2,
        }
        return {"train": [make(i) for i in range(20)], "test": [make(i) for i in range(6)]}


def test_tensorflow_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Data(source="tfds", tfds="yes_no", splits=Splits(1, 0, 0, 0))
    fake = types.SimpleNamespace(builder=lambda name, **_: FakeBuilder())
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    images = load_image_set(config)
    assert images.classes == ("no", "yes")
    assert sizes(images) == {"test": 6, "validation": 0, "calibration": 0, "train": 20}
    content = images.splits["test"][0].read()
    assert isinstance(content, np.ndarray)
    assert content.shape == (5, 5, 3)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataMissingError, match="pip install tensorflow-datasets"):
        load_image_set(config)


def test_natural_order() -> None:
    assert natural_order(["b10", "b2", "a", "10", "9"]) == ["9", "10", "a", "b2", "b10"]


# --- resizing ---


def test_pad_keeps_small_images_as_they_are() -> None:
    digit = np.random.default_rng(0).integers(1, 256, (28, 28), dtype=np.uint8)
    padded = resize_image(array_to_image(digit), (32, 32), "pad").copy()
    np.testing.assert_array_equal(padded[2:30, 2:30, 1], digit)
    padded[2:30, 2:30] = 0
    assert not padded.any()
    wide = resize_image(array_to_image(np.full((50, 100, 3), 9, np.uint8)), (40, 40), "pad")
    assert (wide[10:30] == 9).all()
    assert not wide[:10].any()
    assert not wide[30:].any()


def test_imagenet_resizing_takes_the_centre_of_256() -> None:
    image = array_to_image(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    resized = image.resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[16:240, 58:282]
    np.testing.assert_array_equal(resize_image(image, (224, 224), "imagenet"), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 70), st.integers(1, 70),
    st.sampled_from(["stretch", "crop", "imagenet", "pad"]),
)  # fmt: skip
def test_every_mode_gives_the_size(height: int, width: int, rows: int, columns: int, mode: Resize) -> None:
    image = array_to_image(np.full((height, width, 3), 50, np.uint8))
    result = resize_image(image, (rows, columns), mode)
    assert result.shape == (rows, columns, 3)
    assert result.dtype == np.uint8


# --- downloads ---


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A web server on this machine: path to bytes, or to (bytes or an iterator of them, claimed length)."""
    pages: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages["requests"] = [*pages.get("requests", []), self.path]
            page = pages.get(self.path)
            if page is None:
                self.send_error(404)
                return
            content, length = page if isinstance(page, tuple) else (page, len(page))
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            for part in [content] if isinstance(content, bytes) else content:
                self.wfile.write(part)

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    pages["url"] = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield pages
    httpd.shutdown()
    httpd.server_close()


def published(server: dict[str, Any], name: str, content: bytes) -> Published:
    return Published(f"{server['url']}/{name}", "sha256:" + hashlib.sha256(content).hexdigest(), "models")


def test_a_file_is_fetched_once(server: dict[str, Any], tmp_path: Path) -> None:
    content = bytes(range(256)) * 3000
    server["/w.h5"] = content
    wanted = published(server, "w.h5", content)
    path = fetch(wanted, "bring it")
    assert path == tmp_path / "keras" / "models" / "w.h5"
    assert path.read_bytes() == content
    assert fetch(wanted, "bring it") == path
    assert server["requests"] == ["/w.h5"]
    path.write_bytes(b"damaged")
    assert fetch(wanted, "bring it").read_bytes() == content


@pytest.mark.parametrize("fault", ["other bytes", "cut short", "no end", "not found", "no server"])
def test_a_download_that_fails_leaves_nothing(
    server: dict[str, Any], tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"weights" * 1000
    wanted = published(server, "w.h5", content)
    if fault == "other bytes":
        server["/w.h5"] = content[:-1] + b"?"
    elif fault == "cut short":
        server["/w.h5"] = (content[:100], len(content))
    elif fault == "no end":
        server["/w.h5"] = content
        monkeypatch.setattr(download, "MOST_BYTES", 6_999)
    elif fault == "no server":
        wanted = replace(wanted, url="http://127.0.0.1:9/w.h5")
    with pytest.raises(DownloadError, match=r"bring the file: --set model\.weights"):
        fetch(wanted, "--set model.weights=file")
    assert list((tmp_path / "keras" / "models").iterdir()) == []


def test_an_archive_is_unpacked_whole(server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, name in enumerate(("roses", "tulips")):
        picture(tmp_path / "flower_photos" / name / "1.png", index)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(tmp_path / "flower_photos", "flower_photos")
    server["/flower_photos.tgz"] = buffer.getvalue()
    monkeypatch.setitem(download.DATASETS, "flowers", published(server, "flower_photos.tgz", buffer.getvalue()))
    images = load_image_set(Data(download="flowers"))
    assert images.classes == ("roses", "tulips")
    assert fetch_dataset("flowers").parent == tmp_path / "keras" / "models"
    assert len(server["requests"]) == 1


def test_an_archive_puts_nothing_outside_of_its_folder(
    server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("flower_photos/../../outside"))
    server["/flower_photos.tgz"] = buffer.getvalue()
    monkeypatch.setitem(download.DATASETS, "flowers", published(server, "flower_photos.tgz", buffer.getvalue()))
    with pytest.raises(DataError, match="Expected a tar archive"):
        fetch_dataset("flowers")
    assert [path.name for path in (tmp_path / "keras").rglob("*")] == ["models", "flower_photos.tgz"]


def test_a_download_that_is_killed_leaves_nothing_that_counts_as_done(server: dict[str, Any], tmp_path: Path) -> None:
    content = bytes(2**20)
    wanted = published(server, "w.h5", content)
    stalls = threading.Event()

    def half() -> Iterator[bytes]:
        yield content[: 2**19]
        stalls.wait(60)

    server["/w.h5"] = (half(), len(content))
    code = f"from pipeline.data.download import Published, fetch; fetch({wanted!r}, 'bring it')"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        models = tmp_path / "keras" / "models"
        while process.poll() is None and not any(part.stat().st_size for part in models.glob("*")):
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    stalls.set()
    assert not (models / "w.h5").exists()
    server["/w.h5"] = content
    assert fetch(wanted, "bring it").read_bytes() == content


def test_what_is_fetched_may_be_shared(server: dict[str, Any], tmp_path: Path) -> None:
    server["/w.h5"] = b"weights"
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    assert fetch(published(server, "w.h5", b"weights"), "bring it").stat().st_mode == usual


def test_a_machine_without_the_package_that_fetches(server: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DownloadError, match=r"pooch.*bring the file: bring it"):
        fetch(published(server, "w.h5", b"weights"), "bring it")


def test_without_a_network_the_data_is_missing(server: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(download.DATASETS, "mnist", published(server, "mnist.npz", b"never there"))
    with pytest.raises(DataMissingError, match=r"--set data\.path=/path/to/mnist\.npz"):
        load_image_set(Data(source="npz", download="mnist"))


def test_the_address_of_the_class_names_is_that_in_the_source_of_keras() -> None:
    from keras.src.applications import imagenet_utils

    assert download.IMAGENET_CLASSES.url == imagenet_utils.CLASS_INDEX_PATH


# --- the shared data ---


@needs_shared
def test_the_signs_set() -> None:
    config = Data(path=str(SHARED / "signs"), label_pattern="^(.)")
    images = load_image_set(config)
    assert images.classes == tuple("012345")
    assert images.crossing == 27
    everywhere = [s.sha256 for split in SPLITS for s in images.splits[split]]
    assert len(everywhere) == len(set(everywhere)) == 864 + 216 + 120 - images.duplicates


@needs_shared
@pytest.mark.parametrize(
    ("recipe", "path", "expected"),
    [
        ("flowers", "flowers", {"train": 300, "validation": 0, "calibration": 128, "test": 240}),
        ("imagenet", "imagenet", {"train": 0, "validation": 0, "calibration": 500, "test": 500}),
    ],
)
def test_recipes_deal_the_shared_data(recipe: str, path: str, expected: dict[str, int]) -> None:
    configs = ROOT / "configs"
    config = load_recipe(configs / f"{recipe}.yaml", [f"data.path={SHARED / path}"]).data
    assert sizes(load_image_set(config)) == expected


def test_a_list_of_classes_may_hold_more_than_there_are_and_not_less(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog", "dog", "cat")):
        picture(tmp_path / "photos" / name / f"{number}.png", number)
    classes = tmp_path / "names.json"
    config = Data(path=str(tmp_path / "photos"), classes=str(classes))
    classes.write_text(json.dumps(["dog", "owl", "cat"]))
    assert load_image_set(config).classes == ("dog", "owl", "cat")
    classes.write_text(json.dumps(["cat", "owl"]))
    with pytest.raises(DataError, match=r"data\.classes: expected a name for each class\. Received: none for dog\."):
        load_image_set(config)


@pytest.mark.parametrize(("label", "fits"), [(MOST_CLASSES - 1, True), (MOST_CLASSES, False), (-1, False)])
def test_the_largest_label_of_arrays(label: int, fits: bool) -> None:
    with contextlib.nullcontext() if fits else pytest.raises(DataError, match=r"labels from 0 to at most 99,999"):
        _check_arrays(Path("x.npz"), np.zeros((1, 4, 4), np.uint8), np.array([label]))
