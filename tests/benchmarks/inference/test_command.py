"""The command that measures batch inference: what it refuses at once, and a short run of all of it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from benchmarks.inference import alone, first_answer
from benchmarks.inference.command import COMPUTE_BOUND, DECODE_BOUND, LINES, SMALL, main
from benchmarks.inference.record import COMPUTE, DECODE, ONE, OURS, SCRIPT, TUTORIAL, InferenceReport
from benchmarks.inference.scenario import infer_words, refuse_unlike
from export.errors import ProjectError
from export.ort_session import open_session
from export.records import read_record
from pipeline.recipe.load import load_recipe
from pipeline.serving.select_model import Selection, select_model
from pipeline.workflow.context import Context
from tests import tiny_onnx
from tests.conftest import Chain


def words(chain: Chain, *more: str) -> list[str]:
    models = ["--large", str(chain.recipe), "--small", str(chain.recipe)]
    return [*models, "--artifacts", str(chain.artifacts), *more]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "fast"], r"--only: expected compute-bound, .* Received: 'fast'"),
        (["--output", "x.txt"], r"ends in .json after --output"),
        (["--rounds", "0"], "whole number from 1 on"),
        (["--show", "nowhere.json"], "nowhere.json"),
        (["--artifacts", "nowhere"], "train/model.json"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(options) == 2
    assert re.search(message, capsys.readouterr().err)


def test_photographs_are_asked_for(made_chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(made_chain)) == 2
    assert "Expected a folder of photographs after --photos; they are no part of this project." in (
        capsys.readouterr().err
    )


def test_a_recipe_that_the_scripts_do_not_know_is_refused(made_chain: Chain) -> None:
    context = Context(load_recipe(made_chain.recipe), made_chain.recipe, made_chain.artifacts)
    refuse_unlike(context, ("stretch",), ("caffe",))
    with pytest.raises(ProjectError, match=r"data\.resize pad, .* Received: stretch in .*tiny\.yaml"):
        refuse_unlike(context, ("pad",))
    with pytest.raises(ProjectError, match=r"preprocessing torch, .* Received: caffe"):
        refuse_unlike(context, ("stretch",), ("torch",))


def test_the_first_answer_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note, session = tmp_path / "note", open_session(tiny_onnx.classifier().SerializeToString())
    between: list[float] = []

    def verb(words: list[str]) -> int:
        assert words == ["infer", "x"]
        assert not note.exists(), "before any answer"
        for _ in range(2):
            session.run(["logits"], {"images": tiny_onnx.pixels(1)})
            between.append(time.monotonic())
        return 3

    monkeypatch.setattr(first_answer, "pipeline", verb)
    start, run = time.monotonic(), onnxruntime.InferenceSession.run
    assert first_answer.main([str(note), "infer", "x"]) == 3
    assert start < float(note.read_text()) < between[0]
    assert onnxruntime.InferenceSession.run is run


def test_compute_alone_is_of_the_file_that_infer_is_told_to_take(
    finished_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(load_recipe(finished_chain.recipe), finished_chain.recipe, finished_chain.artifacts)
    asked: list[tuple[Any, ...]] = []

    def noted(*args: Any, **options: Any) -> Selection:
        asked.append(args[2:])
        return select_model(*args, **options)

    monkeypatch.setattr(alone, "select_model", noted)
    assert alone.compute_alone(context, sorted((finished_chain.images / "red").iterdir())[:3]) > 0
    told = infer_words(context, tmp_path / "x.csv")
    assert asked == [tuple(told[told.index(option) + 1] for option in ("--backend", "--precision"))]


@pytest.mark.slow
def test_a_quick_run_of_every_candidate(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, scenarios = tmp_path / "inference.json", [COMPUTE_BOUND, DECODE_BOUND, SMALL]
    more = ("--photos", str(finished_chain.images), "--quick", "--only", ",".join(scenarios), "--output", str(output))
    status = main(words(finished_chain, *more, "--json"))
    said = capsys.readouterr()
    assert status == 0, said.err
    assert json.loads(said.out.splitlines()[-1])["scenarios"] == scenarios
    report = read_record(InferenceReport, output, remedy="")
    compute, decode = report.contests
    assert {one.name for one in compute.candidates} == {OURS, ONE, SCRIPT, TUTORIAL, COMPUTE, DECODE}
    assert {one.name for one in decode.candidates} == {OURS, ONE, SCRIPT, COMPUTE, DECODE}
    for contest in report.contests:
        assert contest.failed == {}
        for candidate in contest.candidates:
            assert len(candidate.turns) == 2
            assert all(turn.wall_seconds > (turn.seconds or 0) for turn in candidate.turns)
            assert all(
                (turn.classify_seconds is not None) == (candidate.name in (OURS, ONE)) for turn in candidate.turns
            )
            if candidate.name == SCRIPT:
                assert candidate.same_answers == contest.images, "the same work"
        assert {one.verdict for one in contest.comparisons} == {None, "not decided"}, "two rounds decide nothing"
        assert {one.rounds for one in contest.comparisons if one.startup} == {2}
    (first,) = compute.limits
    assert first.measured is not None
    assert first.measured >= 0
    (small,) = report.long_runs
    assert (small.error, small.rows, small.inputs) == ("", 200, 200)
    assert len(small.quarters_mib) == 4
    assert str(tmp_path) not in output.read_text()
    assert main(["--show", str(output)]) == 0
    assert capsys.readouterr().out == "\n".join(said.out.splitlines()[:-1]) + "\n"


@pytest.mark.slow
def test_a_quick_run_of_a_list(finished_chain: Chain, tmp_path: Path) -> None:
    output = tmp_path / "inference.json"
    assert main(words(finished_chain, "--quick", "--only", LINES, "--output", str(output))) == 0
    (lines,) = read_record(InferenceReport, output, remedy="").long_runs
    assert (lines.rows, lines.inputs) == (200, 200)
    assert [limit.verdict for limit in lines.limits] == ["met"]
