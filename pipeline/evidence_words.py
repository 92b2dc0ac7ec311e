"""What the report and the Markdown page say alike of a visit to a GPU. Python 3.10 syntax, standard library alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.gpu_evidence import GpuEvidence, StepState

NAMES = "An engine is called by its type and what it is for: throughput by large batches, or the latency of one image."
STATES: Mapping[str, str] = {
    "running": "The visit is under way, or was ended from outside: this is what was known by then.",
    "interrupted": "The visit was interrupted from the keyboard: this is what was known by then.",
    "cut short": "A step did not end and the visit was cut short: this is what was known by then.",
    "finished": "",
}
PEERS: Mapping[str, str] = {
    "PyTorch eager": "PyTorch eager: channels last, one kernel launched after another.",
    "PyTorch graphs": "PyTorch graphs: channels last, launched by a CUDA graph.",
    "PyTorch compile": "PyTorch compile: channels last, by torch.compile.",
}
_READ = (
    ("sm_clock_mhz", "GPU clock", "MHz"),
    ("memory_clock_mhz", "memory clock", "MHz"),
    ("power_w", "power", "W"),
    ("temperature_c", "temperature", "°C"),
)
CHECKS: Mapping[str, str] = {"pass": "passed", "fail": "failed", "error": "could not be made", "skipped": "skipped"}
_SHORT = 10  # characters of a commit, as Git shortens it


def library(evidence: GpuEvidence) -> str:
    """The library's name and version."""
    return f"{'TensorRT-RTX' if evidence.flavour == 'rtx' else 'TensorRT'} {evidence.tensorrt_version}"


def counted(results: Iterable[object], names: Mapping[Any, str]) -> str:
    """How many there are of each result, in words; of what there is none is left out."""
    counts = Counter(results)
    return ", ".join(f"{counts[key]} {words}" for key, words in names.items() if counts[key])


def short_commit(evidence: GpuEvidence) -> str:
    """The commit, as people write it; the file has all of it."""
    return evidence.commit[:_SHORT] if evidence.commit else "unknown"


def clocks(evidence: GpuEvidence) -> str:
    """The range of what was read of the first GPU after the steps; "" where nothing was."""
    read = [gpus[0] for gpus in evidence.snapshots.values() if gpus]
    said = []
    for key, name, unit in _READ:
        told = [getattr(one, key) for one in read]
        values = [value for value in told if value is not None and math.isfinite(value)]
        if values:
            low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
            said.append(f"{name} {low if low == high else f'{low} to {high}'} {unit}")
    return ", ".join(said)


def not_made(evidence: GpuEvidence) -> dict[str, list[str]]:
    """Names of the steps that were not made, or not to the end, by the reason."""
    ended = evidence.state != "running"
    reasons: dict[StepState, str] = {
        "running": "the visit ended in it" if ended else "it is under way, or the visit was ended in it",
        "pending": "the visit ended before" if ended else "its turn has not come, or the visit was ended before",
    }
    named: dict[str, list[str]] = {}
    for step in evidence.steps:
        if step.state in ("skipped", "running", "pending"):
            named.setdefault(reasons.get(step.state, step.why or "no reason is known"), []).append(step.name)
    return named
