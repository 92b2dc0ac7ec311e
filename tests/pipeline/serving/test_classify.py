"""Which row gets which answer: each image its own, whatever its neighbours in a batch are."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import ProjectError
from export.preprocessing import PreprocessingSpec
from pipeline.data.decode import DecodeSpec
from pipeline.models.model_card import ModelCard
from pipeline.runners.base import Top
from pipeline.serving.classify import classify, row_columns, write_rows

CLASSES = ("zero", "one", "two", "three", "four")
CARD = ModelCard(CLASSES, PreprocessingSpec.from_mode("unit"), DecodeSpec((4, 4), "stretch"), "softmax")


class Runner:
    """Its best class is written in the first pixel; the next ones are those that follow it, a tenth less each."""

    backend, precision, graph_top_k, classes, metadata = "onnxruntime", "fp32", 0, len(CLASSES), None

    def __init__(self, max_batch: int = 100) -> None:
        self.max_batch = max_batch
        self.batches: list[list[int]] = []

    def top(self, pixels: np.ndarray, k: int) -> Top:
        first = pixels[:, 0, 0, 0].astype(np.int32)
        self.batches.append(first.tolist())
        ranks = np.arange(k)
        best = 0.9 - first[:, None] / 100 - ranks[None] / 10
        return Top(best.astype(np.float32), ((first[:, None] + ranks[None]) % len(CLASSES)).astype(np.int32))


def files(folder: Path, kinds: Sequence[int | str]) -> list[Path]:
    """An image of each class number, or a file with that text."""
    paths = []
    for index, kind in enumerate(kinds):
        path = folder / f"{index}.png"
        if isinstance(kind, int):
            Image.fromarray(np.full((4, 4, 3), kind, np.uint8)).save(path)
        elif kind:
            path.write_text(kind)
        paths.append(path)
    return paths


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 100])
@pytest.mark.parametrize(
    "kinds",
    [
        ("broken", 3, 1, 2),
        (3, "broken", 1, 2),
        (3, 1, 2, "broken"),
        ("broken", "broken", 4, "", 0, 1, "broken", 2, 3),
        ("broken", "broken", "broken"),
        (4, 3, 2, 1, 0, 1, 2, 3, 4, 0, 1, 2, 3),
    ],
)
def test_a_broken_image_does_not_shift_its_neighbours(tmp_path: Path, kinds: Sequence[int | str], batch: int) -> None:
    paths = files(tmp_path, kinds)
    rows = list(classify(paths, Runner(), CARD, batch, 2))
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for kind, row in zip(kinds, rows, strict=True):
        assert list(row) == row_columns(2)
        if isinstance(kind, str):
            reason = "not an image that Pillow can read" if kind else "No such file or directory"
            assert (row["status"], row["error"], row["class"], row["probability"]) == ("error", reason, "", "")
            assert (row["class_2"], row["probability_2"]) == ("", "")
            continue
        assert (row["status"], row["error"]) == ("ok", "")
        assert (row["class"], row["class_2"]) == (CLASSES[kind], CLASSES[(kind + 1) % 5])
        assert row["probability"] == pytest.approx(0.9 - kind / 100)
        assert row["probability_2"] == pytest.approx(0.8 - kind / 100)


def test_batches_are_full_in_order_and_no_larger_than_the_runner_takes(tmp_path: Path) -> None:
    paths = files(tmp_path, [n % 5 for n in range(11)])
    runner = Runner(max_batch=4)
    list(classify(paths, runner, CARD, 100, 1))
    assert runner.batches == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0]]
    runner = Runner(max_batch=4)
    list(classify(paths, runner, CARD, 3, 1))
    assert [len(batch) for batch in runner.batches] == [3, 3, 3, 2]


def test_more_classes_than_there_are(tmp_path: Path) -> None:
    (row,) = classify(files(tmp_path, [2]), Runner(), CARD, 1, 9)
    assert [row[f"class_{n}"] for n in range(2, 6)] == ["three", "four", "zero", "one"]
    assert "class_6" not in row
    (row,) = classify(files(tmp_path, [2]), Runner(), CARD, 1, 1)
    assert list(row) == ["path", "status", "class", "probability", "error"]


def test_a_model_of_another_number_of_classes_answers_nothing(tmp_path: Path) -> None:
    runner = Runner()
    runner.classes = 4  # type: ignore[misc]
    with pytest.raises(ProjectError, match="Expected 4 class names"):
        next(iter(classify(files(tmp_path, [2]), runner, CARD, 1, 1)))
    assert runner.batches == []


def test_the_file_holds_what_was_answered(tmp_path: Path) -> None:
    paths = files(tmp_path, ["broken", 3, 1])
    output = tmp_path / "out.csv"
    counts = write_rows(classify(paths, Runner(), CARD, 2, 2), 3, row_columns(2), output)
    assert counts == {"images": 3, "failed": 1}
    with output.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "status", "class", "probability", "class_2", "probability_2", "error"]
    assert rows[1][1:] == ["error", "", "", "", "", "not an image that Pillow can read"]
    assert rows[2][1:] == ["ok", "three", "0.870000", "four", "0.770000", ""]
    assert rows[3][1:] == ["ok", "one", "0.890000", "two", "0.790000", ""]
