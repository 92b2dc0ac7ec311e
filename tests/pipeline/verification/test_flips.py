from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.errors import DataError, ProjectError
from export.metrics.distances import sqnr_db
from pipeline.artifacts.image_results import NEAR_TIE, ImageResults, read_image_results
from pipeline.artifacts.parity_report import NOT_RUN, PASS
from pipeline.runners.base import softmax
from pipeline.verification.flips import accuracy_by_class, changed_answers, collect_results, confusion, most_lost
from pipeline.verification.parity import Answer, Candidate, Reference

LOGITS = np.array([[4, 0, 0], [2.05, 2, 0], [0, 3, 0], [0, 0, 5], [0, 0, 5], [0, 2, 2.05]], np.float32)
LABELS = np.array([0, 0, 1, 2, -1, 2])
OWN = np.array([[4, 0, 0], [2, 2.05, 0], [3, 0, 0], [0, 0, 5], [0, np.nan, 5], [0, 2.05, 2]], np.float32)
REFERENCE = Reference(
    "train/model.keras", "k" * 64, np.zeros((6, 2, 2, 3), np.uint8), LABELS, LOGITS, names=tuple("abcdef")
)


def results_of(answer: Answer | None = None, reference: Reference = REFERENCE) -> ImageResults:
    run = Candidate("m.onnx", "onnxruntime", "int8", "a" * 64, None, lambda: pytest.fail("is not opened"))
    absent = replace(run, name="absent.plan")
    answers = {"m.onnx": answer or Answer(OWN, PASS), "absent.plan": Answer(None, NOT_RUN, "no GPU")}
    return collect_results(reference, [run, absent], answers)


def test_the_results_of_every_image() -> None:
    results = results_of()
    assert results.runs == ("train/model.keras", "m.onnx"), "a run without logits has no row"
    assert results.classes.tolist() == [[0, 0, 1, 2, 2, 2], [0, 1, 0, 2, -1, 1]]
    assert results.names == tuple("abcdef")
    probabilities = softmax(LOGITS)
    assert results.scores[0] == pytest.approx(probabilities.max(axis=1))
    assert results.scores[1, 2] == pytest.approx(softmax(OWN[2:3]).max())
    assert np.isnan(results.scores[1, 4])
    assert results.margins == pytest.approx([np.diff(np.sort(row)[-2:])[0] for row in probabilities])
    assert results.noise_db[1, 1] == pytest.approx(sqnr_db(LOGITS[1:2], OWN[1:2]))
    assert results.noise_db[0].tolist() == [np.inf] * 6
    assert (results.noise_db[1, 0], results.noise_db[1, 4]) == (np.inf, -np.inf)


def test_a_score_is_the_probability_that_the_run_itself_gave() -> None:
    own = np.full(OWN.shape, 0.25, np.float32)
    assert results_of(Answer(OWN, PASS, probabilities=own)).scores[1, 0] == 0.25
    assert results_of(reference=replace(REFERENCE, names=())).names == ("",) * 6


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    results = results_of(reference=replace(REFERENCE, names=("a", "b\udcff", "c", "d", "e", "f")))
    results.write(tmp_path / "images.npz")
    again = read_image_results(tmp_path / "images.npz")
    assert (again.names, again.runs) == (results.names, results.runs)
    for name in ("labels", "classes", "scores", "margins", "noise_db"):
        np.testing.assert_array_equal(getattr(again, name), getattr(results, name))
        assert getattr(again, name).dtype == getattr(results, name).dtype
    number = 50_000  # of the largest sets; the names are longer than a record's JSON may be
    names, zeros = tuple(f"{'é' * 60}, {at:06d}.jpg" for at in range(number)), np.zeros(number, np.float32)
    many = ImageResults(names, zeros.astype(int), ("k",), zeros[None], zeros[None], zeros, zeros[None])
    many.write(tmp_path / "many.npz")
    assert read_image_results(tmp_path / "many.npz").names == names
    replace(results, margins=results.margins[1:]).write(tmp_path / "images.npz")
    with pytest.raises(DataError, match=r"margins of shape \(5,\), where \(6,\) is needed. Run it again"):
        read_image_results(tmp_path / "images.npz")


def test_changed_answers_are_split_by_the_margin_of_keras() -> None:
    flips = changed_answers(results_of(), "m.onnx")
    assert [(flip.image, flip.name, flip.label) for flip in flips] == [
        (1, "b", 0),
        (2, "c", 1),
        (4, "e", -1),
        (5, "f", 2),
    ]
    assert [(flip.reference_class, flip.candidate_class) for flip in flips] == [(0, 1), (1, 0), (2, -1), (2, 1)]
    assert [flip.near_tie for flip in flips] == [True, False, False, True]
    assert flips[0].margin < NEAR_TIE < flips[1].margin
    assert changed_answers(results_of(), "train/model.keras") == []
    with pytest.raises(ProjectError, match=r"one of the runs train/model.keras, m.onnx. Received: absent.plan"):
        changed_answers(results_of(), "absent.plan")


def test_what_is_not_finite_is_no_near_tie() -> None:
    logits = OWN.copy()
    logits[1] = np.inf
    assert [flip.near_tie for flip in changed_answers(results_of(Answer(logits, PASS)), "m.onnx")][:1] == [False]


def test_confusion_and_accuracy_by_class() -> None:
    results = results_of()
    assert confusion(results, "train/model.keras").tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 2]]
    assert confusion(results, "m.onnx").tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 1]]
    assert accuracy_by_class(results, "m.onnx").tolist() == [0.5, 0, 0.5]
    without = replace(results, labels=np.array([0, 0, 0, 2, -1, 2]))
    assert accuracy_by_class(without, "m.onnx")[[0, 2]].tolist() == [pytest.approx(2 / 3), 0.5]
    assert np.isnan(accuracy_by_class(without, "m.onnx")[1])


def test_classes_that_lost_come_in_the_order_of_their_loss() -> None:
    lost = most_lost(results_of(), "m.onnx")
    assert [(change.number, change.images, change.reference, change.candidate) for change in lost] == [
        (1, 1, 1.0, 0.0), (0, 2, 1.0, 0.5), (2, 2, 1.0, 0.5),
    ]  # fmt: skip
    assert most_lost(results_of(), "train/model.keras") == []
    nowhere = replace(results_of(), labels=np.full(6, -1))
    assert most_lost(nowhere, "m.onnx") == []
    assert confusion(nowhere, "m.onnx").sum() == 0
