from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import RunnerError
from pipeline.inference.classify import Settings, classify
from pipeline.inference.inputs.reader import PathReader
from pipeline.inference.items import Item
from pipeline.inference.pace import Pace
from pipeline.runners.base import Outputs, Top, top_k_of
from tests.made_records import make_card

CARD = make_card()


def test_the_best_come_first_and_of_equal_ones_the_lower_class() -> None:
    probabilities = np.array([[0.1, 0.4, 0.1, 0.4], [0.0, 0.25, 0.5, 0.25]], np.float32)
    top = top_k_of(probabilities, 3)
    assert top.classes.tolist() == [[1, 3, 0], [2, 1, 3]]
    assert top.probabilities.tolist() == np.take_along_axis(probabilities, top.classes, axis=1).tolist()
    assert (top.classes.dtype, top.probabilities.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize(("classes", "k"), [(1, 1), (3, 2), (17, 5), (1000, 5), (40, 40)])
def test_the_best_are_those_of_a_stable_sort(classes: int, k: int) -> None:
    random = np.random.default_rng(classes)
    probabilities = random.integers(0, 8, (33, classes)).astype(np.float32) / 8  # many are equal
    top = top_k_of(probabilities, k)
    expected = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top.classes, expected)
    np.testing.assert_array_equal(top.probabilities, np.take_along_axis(probabilities, expected, axis=1))


def test_more_than_there_are_gives_all_and_none_is_refused() -> None:
    assert top_k_of(np.eye(2, dtype=np.float32), 9).classes.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(RunnerError, match="Received: 0"):
        top_k_of(np.eye(2, dtype=np.float32), 0)


class TopRunner:
    """Gives only the best classes, and only as many as were asked for."""

    backend, precision, max_batch, graph_top_k, classes, metadata = "onnxruntime", "fp32", 64, 3, 3, None

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __enter__(self) -> TopRunner:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def infer(self, pixels: np.ndarray) -> Outputs:
        raise AssertionError("all classes were asked for")

    def top(self, pixels: np.ndarray, k: int) -> Top:
        self.asked.append((len(pixels), k))
        classes = (pixels[:, 0, 0, :1].astype(np.int32) + np.arange(k, dtype=np.int32)) % 3
        return Top(np.tile(np.float32(0.5) ** np.arange(1, k + 1, dtype=np.float32), (len(pixels), 1)), classes)


@pytest.mark.parametrize(("top_k", "k"), [(1, 1), (2, 2), (9, 3)])
def test_images_are_classified_by_their_best_classes_alone(tmp_path: Path, top_k: int, k: int) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(path)
    paths[3].write_bytes(b"no image")
    runner = TopRunner()
    items = [Item(row, str(path), "file", str(path)) for row, path in enumerate(paths)]
    batches = list(classify(items, PathReader(), runner, CARD, Settings(2, top_k), Pace()))
    assert runner.asked == [(2, k), (2, k), (1, k)]
    rows = [row for batch in batches for row in batch.rows]
    assert [row.status for row in rows] == ["ok", "ok", "ok", "not_an_image", "ok"]
    for index in (0, 1, 2, 4):
        assert rows[index].classes == tuple(CARD.classes[(index + rank) % 3] for rank in range(k))
        assert rows[index].probabilities == tuple(0.5**rank for rank in range(1, k + 1))
    assert rows[3].classes == ()
