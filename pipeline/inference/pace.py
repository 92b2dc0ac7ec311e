"""Which stage of a run bounds it: how long decoding, computing and writing were busy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from export.words import count
from pipeline.runners.cpus import usable_cpus

Stage = Literal["decode", "compute", "write"]
STAGES: Final[tuple[Stage, ...]] = ("decode", "compute", "write")
NAMES: Final[dict[Stage, str]] = {"decode": "decoding", "compute": "compute", "write": "writing"}
BOUND_BY: Final[dict[Stage, str]] = {"decode": "decode-bound", "compute": "compute-bound", "write": "writing-bound"}
# Below this share of the time even the busiest stage mostly waited: too few images, or a slow list of inputs.
_BOUNDS = 0.6


class Busy(NamedTuple):
    """What one process did.

    Attributes:
        images: rows written.
        decode: seconds that reading and decoding took, in all threads together.
        compute: seconds of the runner.
        write: seconds from a batch's answers to the end of its writing.
    """

    images: int
    decode: float
    compute: float
    write: float


class Pace:
    """Measures the stages of a run, which overlap. Threads may add to it at once.

    Args:
        clock: gives seconds. Defaults to `time.perf_counter`.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.images = 0
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()
        self._began: float | None = None
        self._ended: float | None = None

    def start(self) -> None:
        """Begin the time of the run; a later call goes on with it."""
        self._began = self.clock() if self._began is None else self._began
        self._ended = None

    def stop(self) -> None:
        """End the time of the run."""
        self._ended = self.clock()

    def add(self, stage: Stage, seconds: float) -> None:
        """Add busy time of one thread."""
        with self._lock:
            self._seconds[stage] += seconds

    def add_images(self, number: int) -> None:
        """Add rows that were written."""
        with self._lock:
            self.images += number

    def busy(self) -> Busy:
        """Return what was done so far."""
        with self._lock:
            return Busy(self.images, *(self._seconds[stage] for stage in STAGES))

    def merge(self, other: Busy) -> None:
        """Add what another process did."""
        with self._lock:
            self.images += other.images
            for stage, seconds in zip(STAGES, other[1:]):
                self._seconds[stage] += seconds

    @property
    def seconds(self) -> float:
        """Duration of the run so far; 0 before it starts."""
        if self._began is None:
            return 0.0
        return (self.clock() if self._ended is None else self._ended) - self._began

    def shares(self, threads: int, processes: int = 1) -> dict[Stage, float]:
        """Return the share of the run's time, 0 to 1, that each stage was busy.

        Args:
            threads: that decode, in all processes together.
            processes: that compute and write. Defaults to 1.
        """
        workers: dict[Stage, int] = {"decode": threads, "compute": processes, "write": processes}
        seconds, busy = self.seconds, dict(zip(STAGES, self.busy()[1:]))
        return {stage: busy[stage] / (seconds * workers[stage]) if seconds else 0.0 for stage in STAGES}

    def bound_by(self, threads: int, processes: int = 1) -> Stage | None:
        """Return the stage that was busy nearly all the time, so that only it can make the run faster; None: none was.

        Args:
            threads: see `shares`.
            processes: likewise. Defaults to 1.
        """
        shares = self.shares(threads, processes)
        stage = max(STAGES, key=shares.__getitem__)
        return stage if shares[stage] >= _BOUNDS else None

    def summary(self, threads: int, processes: int = 1) -> dict[str, object]:
        """Return the numbers for ``--json``.

        Args:
            threads: see `shares`.
            processes: likewise. Defaults to 1.

        Returns:
            dict[str, object]: "classify_seconds" of this run, "images_per_second" in them, "bound_by" ("decode",
                "compute", "write", or None), and "decode_busy", "compute_busy", "write_busy", shares of the time.
        """
        seconds = self.seconds
        return {
            "images_per_second": round(self.images / seconds, 3) if seconds else 0.0,
            "classify_seconds": round(seconds, 3),
            "bound_by": self.bound_by(threads, processes),
            **{f"{stage}_busy": round(share, 3) for stage, share in self.shares(threads, processes).items()},
        }

    def sentence(self, threads: int, processes: int = 1, *, gpu: bool = False) -> str:
        """Say which stage bounds the run, how busy each was, and what would make it faster.

        Args:
            threads: see `shares`.
            processes: likewise. Defaults to 1.
            gpu: whether the runner computes on a GPU. Defaults to False.
        """
        shares = self.shares(threads, processes)
        bound = self.bound_by(threads, processes)
        if bound is None:
            return f"no stage bounds it: {_listed(shares, STAGES, threads)}; each waited for another one or for inputs."
        rest = sorted((stage for stage in STAGES if stage != bound), key=shares.__getitem__, reverse=True)
        of_threads = f" on {count(threads, 'thread')}" if bound == "decode" else ""
        return (
            f"{BOUND_BY[bound]}: {_percent(shares[bound])} of wall time{of_threads}; "
            f"{_listed(shares, rest, threads)}. {_advice(bound, threads, gpu)}"
        )


def _listed(shares: dict[Stage, float], stages: tuple[Stage, ...] | list[Stage], threads: int) -> str:
    return ", ".join(
        f"{NAMES[stage]} {_percent(shares[stage])} busy"
        + (f" on {count(threads, 'thread')}" if stage == "decode" else "")
        for stage in stages
    )


def _percent(share: float) -> str:
    return f"{min(share, 1.0):.0%}".replace("%", " %")


def _advice(bound: Stage, threads: int, gpu: bool) -> str:
    if bound == "decode":
        idle = usable_cpus() - threads
        return f"More {'decode threads' if idle > 0 else 'CPU cores'}, or smaller files, would be faster."
    if bound == "write":
        return "A faster disk, or a faster reader of the output, would help."
    if gpu:
        return "A smaller precision, a larger batch, or more GPUs, would be faster."
    return "A GPU, or more CPU cores, would be faster."
