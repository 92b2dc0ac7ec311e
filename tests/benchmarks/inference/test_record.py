"""What was measured of batch inference is held against its targets by whole intervals, and told as tables."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.inference.long_runs import quarters
from benchmarks.inference.markdown import as_markdown
from benchmarks.inference.process import Look
from benchmarks.inference.record import (
    COMPUTE,
    ONE,
    OURS,
    SCRIPT,
    Candidate,
    Contest,
    InferenceReport,
    LongRun,
    Turn,
    at_most,
    compare_turns,
    judge,
)
from export.records import read_record, to_json
from pipeline.artifacts.files import write_json
from pipeline.artifacts.machine import Machine

OUR_TURNS = tuple(Turn(wall, wall - 2, 100, wall - 3) for wall in (12.0, 12.2, 11.9, 12.1, 12.0, 12.3))


def other(name: str, factor: float) -> Candidate:
    return Candidate(
        name, "", tuple(Turn(factor * t.wall_seconds, factor * (t.wall_seconds - 2), 50) for t in OUR_TURNS)
    )


def test_above_one_ours_is_faster_with_or_without_startup() -> None:
    found = compare_turns(OUR_TURNS, other(SCRIPT, 1.4), startup=False, target=1.3)
    assert (found.rounds, found.ratio, found.interval, found.verdict) == (6, 1.4, (1.4, 1.4), "met")
    slow = Candidate(SCRIPT, "", tuple(Turn(2 * t.wall_seconds, t.seconds, 50) for t in OUR_TURNS))
    assert compare_turns(OUR_TURNS, slow, startup=True).ratio == 2.0
    assert compare_turns(OUR_TURNS, slow, startup=False).ratio == 1.0
    assert compare_turns(OUR_TURNS, slow, startup=True).verdict is None, "without a target nothing is judged"


def test_rounds_are_compared_in_pairs() -> None:
    theirs = [1.0, 2.0, 3.0, 4.0, 5.0]
    ours = [Turn(second, second, None) for second in theirs]
    paired = Candidate(SCRIPT, "", tuple(Turn(1.1 * second, 1.1 * second, None) for second in theirs))
    assert compare_turns(ours, paired, startup=False).interval == (1.1, 1.1), "the machine's state cancels"
    shuffled = Candidate(SCRIPT, "", paired.turns[::-1])
    low, high = compare_turns(ours, shuffled, startup=False).interval or (0, 0)
    assert low < 0.5 < 2 < high


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.95, 1.1), "met"),
        ((0.9, 0.949), "missed"),
        ((0.9, 0.95), "not decided"),
        ((0.9, 1.1), "not decided"),
        (None, "not decided"),
    ],
)
def test_a_target_is_decided_by_the_whole_interval(interval: tuple[float, float] | None, verdict: str) -> None:
    assert judge(interval, 0.95) == verdict


def test_a_limit_is_held_exceeded_or_open() -> None:
    assert at_most("x", "s", 5.0, 5.0).verdict == "met"
    assert at_most("x", "s", 5.1, 5.0).verdict == "missed"
    assert at_most("x", "s", None, 5.0).verdict == "not decided"


def test_memory_is_told_by_quarters_of_the_time() -> None:
    looks = [Look(second, (1 + int(second) // 2) << 20) for second in (0, 0.5, 1, 2, 3, 4, 5, 6, 7, 7.9)]
    assert quarters(looks, 8.0) == (1.0, 2.0, 3.0, 4.0)
    assert quarters(looks[:5], 8.0) == (), "a quarter without a look"


def test_the_tables_have_every_number_with_its_target_and_result(tmp_path: Path) -> None:
    candidates = (
        Candidate(OURS, "ours", OUR_TURNS),
        other(SCRIPT, 1.25),
        other(COMPUTE, 0.97),
        Candidate(ONE, "one", (Turn(2.0, None, None),)),
    )
    comparisons = tuple(
        compare_turns(OUR_TURNS, candidate, startup=False, target=target)
        for candidate, target in zip(candidates[1:3], (1.3, 0.95))
    )
    first = at_most("first row", "s", 3.25, 5.0, "the slowest")
    contest = Contest(
        "compute-bound", "imagenet", (224, 224), 32, 500, (299, 299), 30_400, candidates, comparisons, (first,), {}
    )
    report = InferenceReport(
        machine=Machine(),
        commit="0123456789abcdef",
        load_before=0.1,
        contests=(contest,),
        long_runs=(
            LongRun("list lines", "digits", 10, 10, 4.0, 300, (1, 2, 3, 4), (at_most("peak", "MB", 314.6, 1000),)),
            LongRun("small images", "digits", 5, error="exit status 2"),
        ),
    )
    write_json(tmp_path / "r.json", to_json(report))
    assert read_record(InferenceReport, tmp_path / "r.json", remedy="") == report
    text = as_markdown(report)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert [f"{SCRIPT}, without start-up", "1.250", "1.250 to 1.250", "6", "at least 1.3", "missed"] in rows
    assert [f"{COMPUTE}, without start-up", "0.970", "0.970 to 0.970", "6", "at least 0.95", "met"] in rows
    assert ["first row", "3.25 s", "at most 5 s", "met (the slowest)"] in rows
    assert ["peak", "314.6 MB", "at most 1000 MB", "met"] in rows
    speed = 500 / math.fsum((10.0, 10.1)) * 2
    assert [OURS, "ours", "6", "10.05", "9.05", "12.05", f"{speed:.1f}", "100", "–"] in rows
    assert [ONE, "one", "1", "–", "–", "2.00", "–", "–", "–"] in rows
    assert "small images: failed: exit status 2" in text
