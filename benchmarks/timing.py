"""Time several candidates on a noisy machine, in turns, so that the noise affects all of them alike.

The module needs Python 3.10 and numpy alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import Literal

import numpy as np

from pipeline.artifacts.benchmark_report import Summary

PERCENTILE_METHOD: Literal["linear"] = "linear"  # interpolation between order statistics, numpy's default
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measurement:
    """The times of one candidate, call by call, with their summary.

    The turns of candidates that were timed together belong to the same rounds: turn i of one and turn i of another
    saw the machine in the same state, so that they can be compared in pairs (see `benchmarks.contests`).

    Attributes:
        samples_ms: milliseconds of each call, in the order of measuring.
        turns: number of samples of each turn, in order. Defaults to none, for no samples.

    Raises:
        ValueError: the turns do not add up to the samples, or a turn is empty.
    """

    samples_ms: tuple[float, ...] = ()
    turns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if sum(self.turns) != len(self.samples_ms) or any(count < 1 for count in self.turns):
            raise ValueError(
                f"Expected turns of 1 or more that add up to {len(self.samples_ms)}. Received: {self.turns}."
            )

    @classmethod
    def of_turns(cls, turns: Iterable[Sequence[float]]) -> Measurement:
        """Join the samples of each turn, in milliseconds; empty turns are left out."""
        filled = [turn for turn in turns if turn]
        return cls(tuple(chain.from_iterable(filled)), tuple(map(len, filled)))

    def by_turn(self) -> list[tuple[float, ...]]:
        """Return the samples of each turn, in milliseconds."""
        return [self.samples_ms[end - count : end] for count, end in zip(self.turns, accumulate(self.turns))]

    def summary(self, images: int) -> Summary:
        """Reduce the samples to the numbers of a report.

        Percentiles interpolate linearly between the samples (``PERCENTILE_METHOD``). With fewer than 100 samples the
        99th percentile lies between the two largest; ``p99_is_near_max`` is then true.

        Args:
            images: number of images in a call.

        Returns:
            Summary: numbers rounded to four significant digits.

        Raises:
            ValueError: there are no samples, or ``images`` is below 1.
        """
        samples = self.samples_ms
        if not samples or images < 1:
            raise ValueError(f"Expected one sample or more and images >= 1. Received: {len(samples)}, {images}.")
        p50, p90, p99 = (float(value) for value in np.percentile(samples, (50, 90, 99), method=PERCENTILE_METHOD))
        return Summary(
            n=len(samples),
            p50_ms=_significant(p50),
            p90_ms=_significant(p90),
            p99_ms=_significant(p99),
            mean_ms=_significant(float(np.mean(samples))),
            images_per_second=_significant(images * 1000.0 / p50) if p50 > 0 else None,
            p99_is_near_max=len(samples) < 100,
            percentile_method=PERCENTILE_METHOD,
        )


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    seconds_each: float = 3.0,
    warmup_seconds: float = 0.5,
    min_samples: int = 10,
    max_samples: int = 10_000,
    rounds: int = 20,
    progress: Progress | None = None,
    on_error: Callable[[str, Exception], None] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Measurement]:
    """Time calls of the candidates in turns.

    A round gives every candidate one turn of about ``seconds_each / rounds`` and at least one call; every other round
    goes through them in reverse order (A B, B A, A B, …). A machine that slows down for a while thus slows all of
    them, and no candidate always follows the same neighbour. The garbage collector stays on, as in production.

    Args:
        candidates: name to function; a call is one sample and must return only when its work is complete.
        seconds_each: time to spend on each candidate. Defaults to 3.
        warmup_seconds: time for warm-up calls of each, at least one; not counted. Defaults to 0.5.
        min_samples: continue beyond ``seconds_each`` until there are this many. Defaults to 10.
        max_samples: stop a candidate at this many. Defaults to 10,000.
        rounds: number of turns that ``seconds_each`` is divided into. Defaults to 20.
        progress: called after each turn with (name, percent done, 100). Defaults to None.
        on_error: called when a candidate raises; it is left out of the result and the others go on. Defaults to
            None: the exception is raised.
        clock: nanoseconds, monotonic. Defaults to ``time.perf_counter_ns``.

    Returns:
        dict[str, Measurement]: by the names of the candidates.

    Raises:
        ValueError: an argument is out of its range.
    """
    if seconds_each < 0 or warmup_seconds < 0 or not 1 <= min_samples <= max_samples or rounds < 1:
        raise ValueError(
            "Expected seconds_each and warmup_seconds >= 0, 1 <= min_samples <= max_samples and rounds >= 1. "
            f"Received: {seconds_each}, {warmup_seconds}, {min_samples}, {max_samples}, {rounds}."
        )
    counts, spent = dict.fromkeys(candidates, 0), dict.fromkeys(candidates, 0)
    budget = int(seconds_each * 1e9)

    def done(name: str, _: int) -> bool:
        return counts[name] >= max_samples or (counts[name] >= min_samples and spent[name] >= budget)

    def take(name: str) -> list[float]:
        values, took = _turn(candidates[name], budget // rounds, max_samples - counts[name], clock)
        counts[name] += len(values)
        spent[name] += took
        if progress is not None:
            part = min(counts[name] / min_samples, spent[name] / budget if budget else 1.0)
            progress(name, 100 if done(name, 0) else min(99, int(100 * part)), 100)
        return values

    warmups = {name: partial(_warm_up, call, int(warmup_seconds * 1e9), clock) for name, call in candidates.items()}
    return _in_rounds(in_turns(warmups, 1, on_error), take, done, on_error)


def _warm_up(call: Callable[[], object], budget: int, clock: Callable[[], int]) -> list[float]:
    start = clock()
    call()
    while clock() - start < budget:
        call()
    return []


def _in_rounds(
    names: Iterable[str],
    take: Callable[[str], Sequence[float]],
    done: Callable[[str, int], bool],
    on_error: Callable[[str, Exception], None] | None,
) -> dict[str, Measurement]:
    """Run turns (A B, B A, A B, …) of the candidates that are not ``done``, a function of name and number of turns."""
    turns: dict[str, list[Sequence[float]]] = {name: [] for name in names}
    step = 1
    while waiting := [name for name in turns if not done(name, len(turns[name]))]:
        for name in waiting[::step]:
            try:
                turns[name].append(take(name))
            except Exception as error:
                if on_error is None:
                    raise
                del turns[name]
                on_error(name, error)
        step = -step
    return {name: Measurement.of_turns(samples) for name, samples in turns.items()}


def _turn(call: Callable[[], object], length: int, most: int, clock: Callable[[], int]) -> tuple[list[float], int]:
    """Call for ``length`` nanoseconds, at least once; return the samples in ms and the nanoseconds spent in calls."""
    values: list[float] = []
    spent = 0
    while True:
        start = clock()
        call()
        took = clock() - start
        values.append(took / 1e6)
        spent += took
        if spent >= length or len(values) >= most or (took <= 0 and length == 0):
            return values, spent


def in_turns(
    candidates: Mapping[str, Callable[[], Sequence[float]]],
    turns: int = 10,
    on_error: Callable[[str, Exception], None] | None = None,
) -> dict[str, Measurement]:
    """Collect times that the candidates measure themselves, in turns (A B, B A, A B, …).

    Args:
        candidates: name to function, which measures a few calls and returns milliseconds.
        turns: number of turns of each candidate. Defaults to 10.
        on_error: called when a candidate raises; it is left out of the result. Defaults to None: the exception is
            raised.

    Returns:
        dict[str, Measurement]: by the names of the candidates.
    """
    return _in_rounds(candidates, lambda name: candidates[name](), lambda _, had: had >= turns, on_error)


def _significant(value: float, digits: int = 4) -> float:
    known = value != 0 and math.isfinite(value)
    return round(value, digits - 1 - math.floor(math.log10(abs(value)))) if known else value
