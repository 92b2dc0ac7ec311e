"""What was measured of batch inference, as it is written to JSON, and how it is held against the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.contests import compare
from benchmarks.timing import Measurement
from pipeline.artifacts.machine import Machine

SCHEMA = 1
Verdict = Literal["met", "missed", "not decided"]
OURS, ONE = "infer", "infer, one image"
SCRIPT, TUTORIAL, COMPUTE, DECODE = "threaded script", "tutorials' loop", "compute alone", "decoding alone"
WHAT: Mapping[str, str] = {
    OURS: "`python -m pipeline infer`, from files to the finished CSV",
    ONE: "the same on a single image: what starting and ending takes",
    SCRIPT: "Pillow in a thread for each CPU, ONNX Runtime with default options on the same file, same batches, CSV",
    TUTORIAL: "Pillow, then Keras' predict, one image at a time",
    COMPUTE: "the same file and batches, the pixels in memory",
    DECODE: "the same images decoded and resized by a thread for each CPU",
}


@dataclass(frozen=True)
class Turn:
    """One process of a candidate.

    Attributes:
        wall_seconds: from its start to its end.
        seconds: those of its work, without start-up, as it reported them; None where it reports none. Ours are from the
            listing of the images to the finished file; loading the model is in them, which the others leave out.
        peak_mib: most memory in MiB; None where the system does not report it.
        classify_seconds: those of ``seconds`` from the first image to the last answer; None where it reports none.
    """

    wall_seconds: float
    seconds: float | None
    peak_mib: int | None
    classify_seconds: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One way to the answers, or a part of it, in turns with the others.

    Attributes:
        name: of the candidate.
        what: it does.
        turns: in order; turn i of every candidate belongs to round i.
        same_answers: number of images with the same best class as ours; None where it gives no classes.
    """

    name: str
    what: str
    turns: tuple[Turn, ...]
    same_answers: int | None = None


@dataclass(frozen=True)
class Comparison:
    """How many times as fast as another candidate ours is.

    Attributes:
        against: name of the other candidate.
        startup: whether the times hold the start of the processes.
        rounds: number of rounds.
        ratio: geometric mean over the rounds.
        interval: at 95 %, by Student's t on the logarithms of the rounds' ratios; None with fewer than five rounds.
        target: to reach or exceed; None where there is none.
        verdict: met or missed where the whole interval is; None without a target.
    """

    against: str
    startup: bool
    rounds: int
    ratio: float | None
    interval: tuple[float, float] | None
    target: float | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Limit:
    """A number that must not be exceeded.

    Attributes:
        what: was measured.
        unit: of the numbers.
        measured: the number; None where it was not measured.
        most: the target.
        verdict: whether it holds.
        why: what has to be known of the number; "" if nothing.
    """

    what: str
    unit: str
    measured: float | None
    most: float
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class Contest:
    """The candidates of one scenario, measured in turns.

    Attributes:
        name: of the scenario.
        model: name of the recipe.
        input_size: height and width of the model's input.
        batch_size: images at a time.
        images: number of images in a turn.
        image_size: width and height of the first one.
        image_bytes: mean size of a file.
        candidates: that were measured.
        comparisons: of ours with the others.
        limits: further targets.
        failed: name to reason of candidates that failed.
    """

    name: str
    model: str
    input_size: tuple[int, int]
    batch_size: int
    images: int
    image_size: tuple[int, int]
    image_bytes: int
    candidates: tuple[Candidate, ...]
    comparisons: tuple[Comparison, ...]
    limits: tuple[Limit, ...]
    failed: Mapping[str, str]


@dataclass(frozen=True)
class LongRun:
    """One run over very many small images.

    Attributes:
        name: of the run.
        model: name of the recipe.
        inputs: rows that it has to give.
        rows: that it gave.
        wall_seconds: of the process.
        peak_mib: most memory.
        quarters_mib: median of the memory in each quarter of the time.
        limits: the targets.
        error: why it failed; "" if it did not.
    """

    name: str
    model: str
    inputs: int
    rows: int = 0
    wall_seconds: float | None = None
    peak_mib: int | None = None
    quarters_mib: tuple[float, ...] = ()
    limits: tuple[Limit, ...] = ()
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class InferenceReport:
    """The JSON file.

    Attributes:
        schema: of this file.
        machine: on which the command ran.
        commit: of this code; None outside a repository.
        load_before: processes that wanted a CPU in the minute before, on average; above some tenths, it was not quiet.
        contests: of the scenarios.
        long_runs: over very many images.
    """

    schema: int = SCHEMA
    machine: Machine
    commit: str | None
    load_before: float
    contests: tuple[Contest, ...] = ()
    long_runs: tuple[LongRun, ...] = ()


def compare_turns(ours: Sequence[Turn], other: Candidate, *, startup: bool, target: float | None = None) -> Comparison:
    """Compare ours with another candidate, round by round.

    Args:
        ours: turns of ours, each with its seconds.
        other: the other candidate.
        startup: compare the whole processes; else what they reported of their work.
        target: ratio to reach. Defaults to None: there is none.
    """
    times = [
        Measurement.of_turns([[1000 * value] for turn in turns if (value := _seconds(turn, startup)) is not None])
        for turns in (ours, other.turns)
    ]
    rounds, ratio, interval = compare(*times)
    rounded = None if interval is None else (round(interval[0], 4), round(interval[1], 4))
    return Comparison(
        other.name,
        startup,
        rounds,
        None if ratio is None else round(ratio, 4),
        rounded,
        target,
        None if target is None else judge(rounded, target),
    )


def _seconds(turn: Turn, startup: bool) -> float | None:
    return turn.wall_seconds if startup else turn.seconds


def judge(interval: tuple[float, float] | None, target: float) -> Verdict:
    """Return whether a ratio reaches a target: decided only where its whole interval lies on one side."""
    if interval is None or interval[0] < target <= interval[1]:
        return "not decided"
    return "met" if interval[0] >= target else "missed"


def at_most(what: str, unit: str, measured: float | None, most: float, why: str = "") -> Limit:
    """Hold a number against its limit."""
    if measured is None:
        return Limit(what, unit, None, most, "not decided", "not measured")
    return Limit(what, unit, round(measured, 3), most, "met" if measured <= most else "missed", why)
