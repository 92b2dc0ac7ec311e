"""Which stage bounds a run: told by fakes whose times are known."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.decode import Decoded
from pipeline.inference import pace as pace_module
from pipeline.inference.classify import Settings, classify
from pipeline.inference.pace import Busy, Pace
from pipeline.models.model_card import ModelCard
from tests.fakes.inference import CARD, TextDecode, TextReader, TextRunner, items

BATCH = 4


@dataclass(frozen=True)
class SlowDecode(TextDecode):
    seconds: float = 0.0

    def decode(
        self, source: Path | str | bytes | np.ndarray, *, keep_damaged: bool = False, largest_file: int = 2**29
    ) -> Decoded:
        time.sleep(self.seconds)
        return super().decode(source)


def measured(batches: int, threads: int, decode: float, compute: float, write: float) -> Pace:
    """A run whose stages take so many seconds for each batch, decoding on all threads together."""
    slow = SlowDecode((4, 4), "stretch", seconds=decode * threads / BATCH)
    card = ModelCard(CARD.classes, CARD.preprocessing, slow, "softmax")
    runner = TextRunner(compute=lambda values: time.sleep(compute))
    pace = Pace()
    settings = Settings(BATCH, 1, decode_threads=threads)
    for _ in classify(items([1] * (BATCH * batches)), TextReader(), runner, card, settings, pace):
        time.sleep(write)
    return pace


@pytest.mark.parametrize(
    ("stage", "seconds", "said"),
    [
        ("decode", (0.06, 0.03, 0.02), "decode-bound: "),
        ("compute", (0.03, 0.06, 0.02), "compute-bound: "),
        ("write", (0.03, 0.02, 0.06), "writing-bound: "),
    ],
)
def test_the_slowest_stage_is_named_and_its_time_is_the_run(
    stage: str, seconds: tuple[float, float, float], said: str
) -> None:
    pace = measured(12, 2, *seconds)
    assert pace.bound_by(2) == stage
    shares = pace.shares(2)
    for name, own in zip(("decode", "compute", "write"), seconds, strict=True):
        assert shares[name] == pytest.approx(own / 0.06, abs=0.25), name  # type: ignore[index]
    assert 12 * 0.06 <= pace.seconds < 12 * 0.8 * sum(seconds), "the stages did not overlap"
    assert pace.images == 12 * BATCH
    assert pace.sentence(2).startswith(said)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def counted(decode: float, compute: float, write: float, images: int = 1000) -> Pace:
    """Ten seconds, in which the stages were busy for so long."""
    clock = Clock()
    pace = Pace(clock)
    pace.start()
    clock.now += 10
    pace.merge(Busy(images, decode, compute, write))
    pace.stop()
    clock.now += 10
    return pace


@pytest.mark.parametrize(
    ("times", "gpu", "said"),
    [
        (
            (18.6, 3.1, 0.2),
            False,
            "decode-bound: 93 % of wall time on 2 threads; compute 31 % busy, writing 2 % busy. "
            "More CPU cores, or smaller files, would be faster.",
        ),
        (
            (2.4, 9.9, 0.2),
            False,
            "compute-bound: 99 % of wall time; decoding 12 % busy on 2 threads, writing 2 % busy. "
            "A GPU, or more CPU cores, would be faster.",
        ),
        (
            (2.4, 9.9, 0.2),
            True,
            "compute-bound: 99 % of wall time; decoding 12 % busy on 2 threads, writing 2 % busy. "
            "A smaller precision, a larger batch, or more GPUs, would be faster.",
        ),
        (
            (2.4, 2.5, 8.04),
            False,
            "writing-bound: 80 % of wall time; compute 25 % busy, decoding 12 % busy on 2 threads. "
            "A faster disk, or a faster reader of the output, would help.",
        ),
        (
            (8.0, 4.0, 1.0),
            False,
            "no stage bounds it: decoding 40 % busy on 2 threads, compute 40 % busy, writing 10 % busy; each waited "
            "for another one or for inputs.",
        ),
    ],
)
def test_the_sentence_says_what_to_change(
    times: tuple[float, float, float], gpu: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace_module, "usable_cpus", lambda: 2)
    assert counted(*times).sentence(2, gpu=gpu) == said


def test_more_threads_are_advised_where_there_are_cpus_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "usable_cpus", lambda: 3)
    assert "More decode threads, or smaller files, would be faster." in counted(19, 3, 0).sentence(2)


def test_the_numbers_for_machines() -> None:
    assert counted(18.6, 3.1, 0.2).summary(2) == {
        "images_per_second": 100.0,
        "classify_seconds": 10.0,
        "bound_by": "decode",
        "decode_busy": 0.93,
        "compute_busy": 0.31,
        "write_busy": 0.02,
    }


def test_shares_of_several_processes_are_of_all_of_them() -> None:
    shares = counted(18.6, 15.0, 1.0).shares(4, processes=2)
    assert shares == pytest.approx({"decode": 0.465, "compute": 0.75, "write": 0.05})


def test_a_run_of_nothing_has_numbers_too() -> None:
    summary = Pace().summary(2)
    assert (summary["images_per_second"], summary["classify_seconds"], summary["bound_by"]) == (0.0, 0.0, None)
