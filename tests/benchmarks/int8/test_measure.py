"""A step of the bench searches in a process of its own, with this code or an earlier one; test images judge it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.int8.measure import describe, measure
from benchmarks.int8.networks import IMAGES, ONNX
from benchmarks.int8.step import BUDGETS, run_step
from benchmarks.telemetry import commit
from export.errors import ProjectError
from export.files import ROOT
from export.int8.sensitivity import Budget
from export.int8.simulate import simulate
from export.metrics.distances import sqnr_db
from export.metrics.per_image import sqnr_by_image
from export.onnx_passes.file import load_model
from pipeline.quantization.quantize import search_options
from pipeline.recipe.schema import Quantize, VerifyThresholds
from tests.benchmarks.int8 import small_network

# Of a network so small that it helps nothing.
_UNUSED = {"it does not help on held-out images": ("bias correction",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_network.write(tmp_path_factory.mktemp("networks") / "resnet20-trained")


def test_the_budgets_are_those_of_a_recipe_without_thresholds_of_its_own() -> None:
    thresholds = VerifyThresholds()
    asked = search_options(Quantize(), thresholds.fp16, thresholds.int8)
    assert (Budget(*BUDGETS["fp16"]), Budget(*BUDGETS["int8"])) == (asked.fp16, asked.int8)


def test_a_row_says_what_the_step_did_and_what_it_changed(folder: Path) -> None:
    before, shift = measure(folder, ["before", "shift"], None)
    assert (before.step, before.method, before.commit) == ("before", "mse", commit())
    assert (before.int8_convolutions, before.convolutions, before.kept) == (2, 2, ())
    # The tensor between the Convs has a padded reader; the one before the head can be shifted.
    assert (before.quantized, before.shifted, before.skipped, before.gains) == (3, 0, _UNUSED, {})
    assert [key for key, names in shift.skipped.items() if names == ("relu",)] == [
        "no shift: Conv reads it with padding, whose zeros would stand for 128 scales"
    ]
    assert shift.gains.keys() == {"before"}
    assert before.sqnr_db is not None
    assert before.worst_db is not None
    assert before.median_db is not None
    assert before.low_db is not None
    assert 10 < before.worst_db < before.low_db < before.median_db
    assert before.lost >= 0 < before.seconds
    assert "over before" in describe(shift)


def test_the_test_images_judge_and_nothing_else_does(folder: Path, tmp_path: Path) -> None:
    (row,) = measure(folder, ["before"], None)
    report = run_step(folder, "before", tmp_path / "logits.npz")["report"]
    assert report["method"] == row.method
    with np.load(tmp_path / "logits.npz") as logits, np.load(folder / IMAGES) as images:
        reference, int8, labels = logits["reference"], logits["int8"], images["test_labels"]
        assert np.array_equal(reference, simulate(load_model(folder / ONNX), images["test"]))
    assert row.sqnr_db == sqnr_db(reference, int8) != sqnr_db(int8, reference)
    assert (row.worst_db, row.median_db) == tuple(np.sort(sqnr_by_image(reference, int8))[[0, 19]])
    right = [logits.argmax(axis=1) == labels for logits in (reference, int8)]
    assert (row.lost, row.gained) == (np.sum(right[0] & ~right[1]), np.sum(right[1] & ~right[0]))


def test_the_code_of_an_earlier_commit_searches(folder: Path, tmp_path: Path) -> None:
    for package in ("export", "pipeline"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "pipeline/artifacts/machine.py"
    path.write_text(path.read_text() + "\n\ndef peak_memory_mib() -> int:\n    return 7\n")
    options = tmp_path / "export/int8/options.py"
    options.write_text(
        options.read_text().replace('rounding: WeightRounding = "second_order"', 'rounding: WeightRounding = "nearest"')
    )
    earlier, before = measure(folder, ["earlier", "before"], tmp_path)
    assert (earlier.commit, earlier.peak_memory_mib) == (None, 7)
    assert before.commit == commit()
    assert before.peak_memory_mib != 7
    assert before.gains.keys() == {"earlier"}


def test_a_search_that_fails_is_one_error_with_its_message(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / ONNX).write_bytes(b"no graph")
    with pytest.raises(ProjectError, match=r"(?s)Expected `.*step.py .*` to succeed. Received: exit status 1.*ONNX"):
        measure(broken, ["before"], None)
