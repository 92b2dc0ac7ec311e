"""The stranger's script gives ours the same pixels and the same answers, so that it is the same work."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.inference.threaded import RESIZES, decode, main
from pipeline.data.decode import DecodeSpec
from pipeline.runners.onnxruntime import OnnxRunner
from tests import tiny_onnx


def write_images(folder: Path) -> list[Path]:
    """A photograph of every kind that the script meets: colour, grey, turned by EXIF, palette, tall, small."""
    folder.mkdir()
    drawn = np.random.default_rng(0)

    def noise(width: int, height: int) -> Image.Image:
        return Image.fromarray(drawn.integers(0, 256, (height, width, 3), np.uint8))

    turned = Image.Exif()
    turned[0x0112] = 6
    noise(63, 41).save(folder / "a.jpg", quality=90)
    noise(40, 70).convert("L").save(folder / "b.jpg")
    noise(50, 31).save(folder / "c.jpg", exif=turned)
    noise(30, 33).quantize(32).save(folder / "d.png")
    noise(20, 90).save(folder / "e.png")
    noise(7, 5).save(folder / "f.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("resize", RESIZES)
def test_its_pixels_are_those_of_the_card(tmp_path: Path, resize: str) -> None:
    spec = DecodeSpec((16, 16), resize)  # type: ignore[arg-type]
    for path in write_images(tmp_path / "images"):
        assert np.array_equal(decode(path, 16, 16, resize), spec.pixels(path)), path.name


@pytest.mark.parametrize("batch_size", [2, 4, 100])
def test_its_answers_are_those_of_our_runner_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], batch_size: int
) -> None:
    paths = write_images(tmp_path / "images")
    model, classes, output = tiny_onnx.write(tmp_path / "m.onnx"), tmp_path / "classes.json", tmp_path / "o.csv"
    classes.write_text(json.dumps(tiny_onnx.CLASSES))
    words = [str(tmp_path / "images"), "--model", str(model), "--classes", str(classes), "--output", str(output)]
    assert main([*words, "--resize", "stretch", "--batch-size", str(batch_size)]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["images"] == 6
    assert reported["seconds"] > 0
    spec = DecodeSpec((16, 16), "stretch")
    with OnnxRunner(model) as runner:
        top = runner.top(np.stack([spec.pixels(path) for path in paths]), 1)
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert [row["class"] for row in rows] == [tiny_onnx.CLASSES[index] for index in top.classes[:, 0]]
    assert [float(row["probability"]) for row in rows] == pytest.approx(top.probabilities[:, 0], abs=2e-6)
