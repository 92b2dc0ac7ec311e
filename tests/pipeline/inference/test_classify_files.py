"""Real files and ONNX Runtime: the answers are those of the model on the decoded pixels, beside anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from export.preprocessing import PreprocessingSpec
from pipeline.data.decode import DecodeSpec
from pipeline.inference.classify import Settings, classify
from pipeline.inference.items import Item
from pipeline.inference.pace import Pace
from pipeline.inference.rows import Row
from pipeline.models.model_card import ModelCard
from pipeline.runners.onnxruntime import OnnxRunner
from tests import tiny_onnx

CARD = ModelCard(
    tiny_onnx.CLASSES, PreprocessingSpec.from_mode("unit"), DecodeSpec((tiny_onnx.SIZE,) * 2, "stretch"), "softmax"
)


class Files:
    """A file's path, or its bytes as an archive would give them."""

    def content(self, item: Item, largest: int) -> Path | bytes:
        return Path(item.place).read_bytes() if item.kind == "tar" else Path(item.place)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    model = tiny_onnx.classifier()
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in CARD.metadata().items()})
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(5)
    paths = [tmp_path / f"{index:02}.{'jpg' if index % 2 else 'png'}" for index in range(23)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return paths


def run(model: Path, paths: list[Path], batch: int = 5, threads: int = 3) -> list[Row]:
    items = (Item(row, str(path), "tar" if row % 3 else "file", str(path)) for row, path in enumerate(paths))
    with OnnxRunner(model, threads=1, spinning=False) as runner:
        batches = list(classify(items, Files(), runner, CARD, Settings(batch, 4, decode_threads=threads), Pace()))
    return [row for batch in batches for row in batch.rows]


def test_answers_are_those_of_the_model_on_each_batch(model: Path, photos: list[Path]) -> None:
    pixels = np.stack([CARD.decode.pixels(path) for path in photos])
    found = run(model, photos)
    with OnnxRunner(model, threads=1) as runner:
        assert runner.threads == 1
        tops = [runner.top(pixels[start : start + 5], 4) for start in range(0, 23, 5)]
    probabilities = np.concatenate([top.probabilities for top in tops])
    classes = np.concatenate([top.classes for top in tops])
    assert [row.probabilities for row in found] == [tuple(row) for row in probabilities.tolist()]
    assert [row.classes for row in found] == [tuple(CARD.classes[n] for n in row) for row in classes]
    assert {(row.status, row.width, row.height) for row in found} == {("ok", 40, 30)}


def test_files_without_an_answer_change_no_other_bit(model: Path, photos: list[Path]) -> None:
    expected = run(model, photos)
    photos[4].write_bytes(b"no image")
    photos[5].write_bytes(photos[5].read_bytes()[:700])
    photos[6].unlink()  # read as a path: row 6 is a "file"
    found = run(model, photos, threads=1)
    assert [row.status for row in found[4:7]] == ["not_an_image", "damaged", "missing"]
    assert (found[5].width, found[5].height, found[5].classes) == (40, 30, ())
    assert found[:4] + found[7:] == expected[:4] + expected[7:]
