"""Steps by worth and seconds: which are made, which no longer fit, and what the first ones teach about the next."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.record import CUT_SHORT, MARGIN, Record
from benchmarks.gpu.steps import Estimates, PlannedStep, run_steps
from export.errors import ProjectError
from pipeline.artifacts.gpu_evidence import read_gpu_evidence
from tests.benchmarks.visits import step_of
from tests.pipeline.artifacts.test_gpu_evidence_record import EVIDENCE


class Clock:
    """Seconds that pass when a step works."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.worked: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.worked.append(name)
            self.now += seconds

        return work

    def step(
        self, name: str, guess: float, takes: float, kind: str = "", leads_to: tuple[str, ...] = ()
    ) -> PlannedStep:
        return PlannedStep(name, kind or name, guess, self.work(name, takes), leads_to=leads_to)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "x.json", EVIDENCE)


def test_what_no_longer_fits_is_skipped_and_what_does_is_made(record: Record) -> None:
    clock = Clock()
    steps = [clock.step("a", 50, 50), clock.step("b", 100, 1), clock.step("c", 40, 20), clock.step("d", 40, 1)]
    run_steps(steps, record, 100, clock)
    assert clock.worked == ["a", "c"]
    kept = {step.name: step for step in read_gpu_evidence(record.path).steps}
    assert [kept[name].state for name in "abcd"] == ["done", "skipped", "done", "skipped"]
    assert kept["b"].why == "it takes about 100 s; 50 s are left"
    assert (kept["c"].expected_seconds, kept["c"].seconds) == (40, 20)
    assert (kept["b"].expected_seconds, kept["b"].seconds) == (100, None)
    exact = Clock()
    run_steps([exact.step("a", 60, 60), exact.step("b", 40, 1)], record, 100, exact)
    assert exact.worked == ["a", "b"], "what fits to the second is made"


def test_what_the_first_took_is_expected_of_the_next(record: Record) -> None:
    clock = Clock()
    steps = [clock.step(name, 90, 10, "build") for name in ("fp16", "int8", "fp32")]
    run_steps(steps, record, 95, clock)
    assert clock.worked == ["fp16", "int8", "fp32"]
    assert step_of(record.evidence, "fp32").expected_seconds == 10
    slow = Clock()
    run_steps([slow.step(name, 10, 60, "build") for name in ("fp16", "int8")], record, 100, slow)
    assert slow.worked == ["fp16"]
    assert step_of(record.evidence, "int8").why == "it takes about 60 s; 40 s are left"


def test_a_step_leaves_room_for_what_it_is_made_for(record: Record) -> None:
    clock = Clock()
    steps = [
        clock.step("build fp16", 40, 40, "build", ("time",)),
        clock.step("build int8", 40, 40, "build", ("time",)),
        clock.step("time", 30, 30),
    ]
    run_steps(steps, record, 100, clock)
    assert clock.worked == ["build fp16", "time"]
    said = "it takes about 70 s with time, which needs it; 60 s are left"
    assert step_of(record.evidence, "build int8").why == said


def test_without_a_limit_everything_is_made(record: Record) -> None:
    clock = Clock()
    absent = replace(clock.step("b", 1, 1), why_not=lambda: "no file")
    run_steps([clock.step("a", 1e6, 1e6), absent], record, None, clock)
    assert clock.worked == ["a"]
    assert (step_of(record.evidence, "b").state, step_of(record.evidence, "b").why) == ("skipped", "no file")


def test_estimates_are_the_mean_of_what_was_seen() -> None:
    clock, estimates = Clock(), Estimates()
    small, large = clock.step("s", 10, 0, "k"), clock.step("l", 100, 0, "k")
    estimates.learn(small, 5)
    estimates.learn(large, 150)
    assert estimates.expect(large) == 100
    assert estimates.expect(clock.step("other", 7, 0)) == 7


def test_the_step_under_way_is_written_before_it_is_made(record: Record) -> None:
    seen = []
    step = PlannedStep("a", "a", 1, lambda: seen.append(step_of(read_gpu_evidence(record.path), "a").state))
    run_steps([step], record, None)
    assert seen == ["running"]


def test_each_step_says_how_many_there_are(record: Record, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "benchmarks.gpu")
    clock = Clock()
    run_steps([clock.step("a", 20, 20), clock.step("b", 5, 5)], record, 60, clock)
    assert [record.getMessage() for record in caplog.records] == [
        "2 steps, about 1 minute by a first guess, and at most 1: what no longer fits is skipped",
        "1/2 a, about 20 s of 60 s left",
        "2/2 b, about 5 s of 40 s left",
    ]


def test_a_step_that_hangs_is_cut_short(
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    began, ended = threading.Event(), threading.Event()
    seconds: list[float] = []

    class AfterTheStepBegan(threading.Timer):
        def run(self) -> None:
            seconds.append(self.interval)
            began.wait(20)
            self.function(*self.args)

    def hang() -> None:
        began.set()
        states.append(ended.wait(20))

    monkeypatch.setattr("benchmarks.gpu.record.threading.Timer", AfterTheStepBegan)
    left: list[int] = []
    states: list[object] = []

    def leave(status: int) -> None:
        left.append(status)
        kept = read_gpu_evidence(record.path)
        states.extend((kept.state, step_of(kept, "hangs").state))
        ended.set()

    with record.watched(2.0, leave):
        run_steps([PlannedStep("hangs", "x", 0.0, hang)], record, 1.0)
    assert seconds == [2.0 + MARGIN]
    assert (states, left) == (["cut short", "running", True], [CUT_SHORT])
    assert f"the step hangs does not end: cut short, the results so far are in {record.path}" in caplog.text
    told = json.loads(capsys.readouterr().out)
    assert (told["output"], told["state"], told["exit"]) == (str(record.path), "cut short", CUT_SHORT)
    assert told["error"] in caplog.text


def test_a_step_that_cannot_be_asked_or_that_leaves_does_not_end_the_visit(record: Record) -> None:
    def broken() -> str:
        raise ValueError("torch.__spec__ is None")

    def leaves() -> None:
        raise SystemExit(7)

    clock = Clock()
    steps = [
        PlannedStep("a", "a", 1, clock.work("a", 1), broken),
        PlannedStep("b", "b", 1, leaves),
        PlannedStep("c", "c", 1, lambda: record.change(asked={"features": {"avx2"}})),  # JSON has no sets
        PlannedStep("d", "d", 1, lambda: record.change(machine={"cpu": "text"})),  # the page wants an object
        clock.step("e", 1, 1),
    ]
    run_steps(steps, record, None, clock)
    assert clock.worked == ["e"]
    kept = {step.name: (step.state, step.why) for step in read_gpu_evidence(record.path).steps}
    assert kept["a"] == ("skipped", "ValueError: torch.__spec__ is None")
    assert kept["b"] == ("error", "SystemExit: 7")
    assert kept["c"] == ("error", "TypeError: Object of type set is not JSON serializable")
    assert kept["d"][0] == "error"
    assert kept["e"] == ("done", "")


def test_a_visit_that_ends_in_time_is_not_watched_any_more(record: Record) -> None:
    with record.watched(1000.0, lambda status: pytest.fail("it left")):
        assert any(isinstance(one, threading.Timer) for one in threading.enumerate())
    for one in threading.enumerate():
        if isinstance(one, threading.Timer):
            one.join(5)
    assert not any(isinstance(one, threading.Timer) for one in threading.enumerate())


def test_a_disk_that_takes_nothing_ends_in_a_sentence(
    record: Record, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("benchmarks.gpu.record.write_atomic", full)
        record.change(commit="lost")  # the visit goes on
        with pytest.raises(ProjectError, match=r"No space left on device\. Free space there, or name another place"):
            record.close("finished")
        assert "# imagenet on NVIDIA H200, TensorRT 8.6.0" in caplog.text, "what was measured is not lost"
        with pytest.raises(ProjectError, match="No space left on device"):
            Record(record.path.with_name("y.json"), EVIDENCE)  # before any time of the GPU is spent
    record.close("finished")
    assert read_gpu_evidence(record.path).commit == "lost"
