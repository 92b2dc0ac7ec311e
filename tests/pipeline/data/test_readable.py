"""Unreadable images: all are named before the first stage, and left out before anything is counted."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from export.errors import DataError
from export.records import to_json
from pipeline.artifacts.files import sha256_bytes
from pipeline.artifacts.inputs import Inputs
from pipeline.artifacts.manifest import Key, write_manifest
from pipeline.artifacts.results import Trained, Unreadable
from pipeline.data import sample as readable
from pipeline.data.dataset import ImageSet, load_image_set
from pipeline.data.decode import DecodeSpec
from pipeline.data.sample import Sample, find_damaged, listing, recorded_damage
from pipeline.data.splits import roles_of
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import SPLITS, Data, Recipe
from pipeline.stages import BY_NAME
from pipeline.workflow import context
from pipeline.workflow.context import Context
from pipeline.workflow.stage import execute, reasons_to_run
from tests.fakes.jpeg_files import scan_of


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


TRUNCATED = jpeg(999)[:-200]  # opens, and ends in the middle


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for part, name in enumerate("ab"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(40):
            (tmp_path / "photos" / name / f"{index}.jpg").write_bytes(jpeg(100 * part + index))
    return tmp_path / "photos"


def everything(images: ImageSet) -> set[str]:
    return {sample.name for split in SPLITS for sample in images.splits[split]}


BROKEN = {"empty": b"", "page": b"<!doctype html><html><body>404</body></html>", "header": jpeg(1)[:20]}


@pytest.mark.parametrize("kind", [*BROKEN, "truncated"])
def test_alike_broken_files_in_two_classes_are_unreadable(photos: Path, kind: str) -> None:
    for index in range(4):
        for name in "ab":
            (photos / name / f"bad{index}.jpg").write_bytes((BROKEN | {"truncated": TRUNCATED})[kind])
    with pytest.raises(DataError) as info:
        load_image_set(Data(path=str(photos)))
    message = str(info.value)
    assert "at most 0 unreadable images (data.max_bad_images). Received: 8 of 88:" in message
    assert all(f"{name}/bad{index}.jpg: " in message for name in "ab" for index in range(4))
    assert "same picture" not in message
    assert message.endswith("or leave them out: --set data.max_bad_images=8")
    images = load_image_set(Data(path=str(photos), max_bad_images=8))
    assert len(everything(images)) == 80
    assert images.unreadable[0].name.startswith("a/bad")
    assert (images.duplicates, images.conflicts) == (0, ())


def test_who_is_told_of_bad_headers_is_told_of_truncated_files_too(photos: Path) -> None:
    (photos / "a" / "empty.jpg").write_bytes(b"")
    (photos / "b" / "cut.jpg").write_bytes(TRUNCATED)
    with pytest.raises(
        DataError,
        match=r"Received: 2 of 82:\n  a/empty\.jpg: the file is empty\n  b/cut\.jpg: Premature end of JPEG file",
    ):
        load_image_set(Data(path=str(photos)))


def test_a_table_that_lists_what_is_no_image(photos: Path, tmp_path: Path) -> None:
    (photos / "a" / "page.jpg").write_bytes(BROKEN["page"])
    rows = [f"photos/{p.parent.name}/{p.name},{p.parent.name}" for p in sorted(photos.rglob("*.jpg"))]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    config = Data(source="csv", path=str(tmp_path / "labels.csv"))
    with pytest.raises(DataError, match=r"photos/a/page\.jpg: not an image"):
        load_image_set(config)
    assert len(load_image_set(replace(config, max_bad_images=1)).unreadable) == 1


def test_long_lists_are_cut() -> None:
    text = listing([Unreadable(f"{i}.jpg", "the file is empty") for i in range(50)])
    assert text.count("the file is empty") == readable.MOST_NAMED
    assert text.endswith("\n  and 30 more")


def test_files_are_decoded_once_and_arrays_never(photos: Path) -> None:
    calls: list[Path] = []

    def read(path: Path) -> Callable[[], Path]:
        return lambda: calls.append(path) or path  # type: ignore[func-returns-value]

    one, two = photos / "a" / "1.jpg", photos / "a" / "2.jpg"
    two.write_bytes(TRUNCATED)
    samples = [Sample("1", 0, "x", read(one), one), Sample("copy", 0, "x", read(one), one)]
    samples += [Sample("2", 0, "y", read(two), two), Sample("array", 0, "z", lambda: pytest.fail("an array"))]
    assert list(find_damaged(samples, DecodeSpec((8, 8), "stretch"))) == ["y"]
    assert sorted(calls) == [one, two]


def test_how_long_it_takes_is_said_where_it_takes_long(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    samples = [Sample(p.name, 0, str(p), lambda p=p: p, p) for p in sorted(photos.rglob("*.jpg"))]
    find_damaged(samples, DecodeSpec((8, 8), "stretch"))
    assert "to find damaged ones" not in caplog.text
    monkeypatch.setattr(readable, "AT_ONCE", 10)
    monkeypatch.setattr(readable, "ANNOUNCED_SECONDS", 0.0)
    find_damaged(samples, DecodeSpec((8, 8), "stretch"))
    assert "decoding all 80 images once to find damaged ones: about 0 s" in caplog.text
    clock = iter((0.0, 20.0))
    monkeypatch.setattr(readable.time, "perf_counter", lambda: next(clock))
    find_damaged(samples, DecodeSpec((8, 8), "stretch"))
    assert "about 3 minutes" in caplog.text, "70 more at 2 s each"


def test_the_record_of_a_training_says_what_was_damaged(tmp_path: Path) -> None:
    unreadable = (Unreadable("a.jpg", "no end", "a" * 64), Unreadable("b.jpg", "no image"))
    result = to_json(Trained({}, 0, 0, (), unreadable, {}, None))
    record = partial(write_manifest, tmp_path, stage="train", recipe="toy", key=Key({}, {}, ""), seconds=0)
    assert recorded_damage(record(result=result)) == {"a" * 64: "no end"}
    for damage in (3, [3], [{"name": "x"}]):
        assert recorded_damage(record(result=result | {"unreadable_images": damage})) == {}
    assert recorded_damage(record(result={})) == recorded_damage(None) == {}


# --- before the first stage ---


class Chain:
    """A recipe with a train stage that trains nothing."""

    def __init__(self, photos: Path, **data: Any) -> None:
        self.recipe = photos.parent / "toy.yaml"
        tree = {"data": {"path": str(photos), **data}, "model": {"input_size": 32}}
        self.recipe.write_text(yaml.safe_dump(tree | {"quantize": {"min_images": 2}, "verify": {"min_images": 2}}))
        self.seen: list[ImageSet] = []
        self.stage = replace(BY_NAME["train"], run=self.run, module="pipeline.stages.train")

    def run(self, inputs: Inputs, settings: Recipe, out: Path) -> Trained:
        images = inputs.images
        self.seen.append(images)
        return Trained({}, 0, 0, (), images.unreadable, {}, None)

    def context(self, *overrides: str) -> Context:
        return Context(load_recipe(self.recipe, overrides), self.recipe, self.recipe.parent / "artifacts")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each search for damage looked at."""
    counts: list[int] = []
    find = context.find_damaged

    def counted(samples: Any, decode: DecodeSpec) -> dict[str, str]:
        counts.append(len(samples))
        return find(samples, decode)

    monkeypatch.setattr(context, "find_damaged", counted)
    return counts


def test_truncated_images_are_named_before_the_first_stage_runs(photos: Path) -> None:
    for name in "ab":
        (photos / name / "cut.jpg").write_bytes(TRUNCATED[: -ord(name)])
    chain = Chain(photos)
    with pytest.raises(
        DataError,
        match=r"Received: 2 of 82:\n  a/cut\.jpg: Premature end of JPEG file\n  b/cut\.jpg: Premature end of JPEG file",
    ):
        execute(chain.stage, chain.context())
    assert chain.seen == []


def test_damage_inside_a_scan_is_found_before_the_first_stage_runs(photos: Path) -> None:
    start, end = scan_of(jpeg(999))
    spoilt = jpeg(999)[: (start + end) // 2] + b"\xff\xd9"
    Image.open(io.BytesIO(spoilt)).load()  # Pillow says nothing
    (photos / "a" / "spoilt.jpg").write_bytes(spoilt)
    chain = Chain(photos)
    with pytest.raises(DataError, match=r"Received: 1 of 81:\n  a/spoilt\.jpg: Corrupt JPEG data: premature end"):
        execute(chain.stage, chain.context())
    assert chain.seen == []
    chain = Chain(photos, max_bad_images=1)
    execute(chain.stage, chain.context())
    assert len(everything(chain.seen[0])) == 80


def test_they_are_left_out_of_every_stage_and_looked_for_once(photos: Path, decoded: list[int]) -> None:
    (photos / "a" / "cut.jpg").write_bytes(TRUNCATED)
    chain = Chain(photos, max_bad_images=1)
    first = execute(chain.stage, chain.context())
    assert "a/cut.jpg" not in everything(chain.seen[0])
    assert decoded == [81]
    again = chain.context()
    assert reasons_to_run(chain.stage, again) == [], "its inputs are recorded without the damaged image"
    assert not execute(chain.stage, again).ran
    assert decoded == [81]
    assert everything(again.images) == everything(chain.seen[0]), "later stages leave it out too"
    assert [image.name for image in again.images.unreadable] == ["a/cut.jpg"]
    (photos / "a" / "cut.jpg").unlink()
    assert not execute(chain.stage, chain.context()).ran, "it was no input"
    (photos / "a" / "cut.jpg").write_bytes(jpeg(999))
    splits = {sha256_bytes(jpeg(999)) in {s.sha256 for s in chain.context().images.splits[n]} for n in SPLITS}
    assert True in splits, "repaired, it is another file"
    assert first.ran


def test_each_is_named_once(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "a" / "cut.jpg").write_bytes(TRUNCATED)
    (photos / "a" / "empty.jpg").write_bytes(b"")
    chain = Chain(photos, max_bad_images=2)
    execute(chain.stage, chain.context())
    assert caplog.text.count("a/empty.jpg: the file is empty") == caplog.text.count("a/cut.jpg: ") == 1
    assert "left out 1 more unreadable image:\n  a/cut.jpg" in caplog.text


def test_what_was_damaged_is_tried_again_when_the_stage_runs(photos: Path, decoded: list[int]) -> None:
    (photos / "a" / "cut.jpg").write_bytes(TRUNCATED)
    chain = Chain(photos, max_bad_images=1)
    execute(chain.stage, chain.context())
    execute(chain.stage, chain.context("train.seed=2"))
    assert decoded == [81, 81]
    assert [len(images.unreadable) for images in chain.seen] == [1, 1]


def test_only_readable_images_count(photos: Path) -> None:
    roles = roles_of(Data(), {None}, trains=True)
    cut = [jpeg(999)[:-length] for length in range(150, 200)]
    cut = [data for data in cut if roles.split_of(Sample("", 0, sha256_bytes(data), bytes)) == "test"][:3]
    for index, data in enumerate(cut):
        (photos / "a" / f"cut{index}.jpg").write_bytes(data)
    chain = Chain(photos, max_bad_images=3)
    size = len(chain.context().images.splits["test"])  # nothing is decoded yet
    with pytest.raises(DataError, match=rf"Received: {size - 3} of 80 images .* 3 unreadable"):
        execute(chain.stage, chain.context(f"verify.min_images={size}"))
    execute(chain.stage, chain.context(f"verify.min_images={size - 3}"))


def test_too_few_images_are_told_before_anything_is_decoded(photos: Path, decoded: list[int]) -> None:
    chain = Chain(photos)
    with pytest.raises(DataError, match="at least 500 test images"):
        execute(chain.stage, chain.context("verify.min_images=500"))
    assert decoded == []


def test_what_every_stage_would_say_is_said_once(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (photos / "a" / "copy.jpg").write_bytes((photos / "a" / "1.jpg").read_bytes())
    (photos / "a" / "x.dng").write_bytes(b"x")
    (photos / "a" / "empty.jpg").write_bytes(b"")
    chain = Chain(photos, max_bad_images=1)
    context = chain.context()
    execute(chain.stage, context)
    for split in SPLITS:
        context.split(split, {})
    said = [record.getMessage() for record in caplog.records]
    assert sum("left out 1 copy of pictures" in line for line in said) == 1
    assert sum("left out: 1 .dng" in line for line in said) == 1
    assert sum("left out 1 unreadable image:\n  a/empty.jpg: the file is empty" in line for line in said) == 1
    assert sum(line.startswith("80 images: ") for line in said) == 1
    caplog.clear()
    photos.rename(tmp_path / "elsewhere")
    context = chain.context()
    for split in SPLITS:
        context.split(split, {f"data/{split}": "x", "data/classes": "y"})
    (told,) = caplog.records
    assert "the images are not on this machine; their recorded digests are used" in told.getMessage()
