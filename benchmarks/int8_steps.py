"""Make INT8 files with the steps of the search for INT8 turned off and on, to measure what each is worth.

Every choice within a step is the search's own, on held-out calibration images; no test image is seen here.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx

from export.calibration import collect_statistics
from export.fp16.convert import unfit_for_fp16
from export.int8.fp16_search import Fp16Result, search_fp16
from export.int8.options import SearchOptions
from export.int8.placement import measured_tensors
from export.int8.report import CalibrationReport, Distances
from export.int8.scales import METHODS
from export.int8.search import Batches, SearchResult, search
from export.int8.sensitivity import Budget
from export.int8.simulate import HeldOut
from export.onnx_passes.file import save_model
from pipeline.artifacts.machine import peak_memory_mib
from pipeline.terminal.console import progress_bar

_NORMS = ("lp_2.4", "lp_3")
_BEFORE = tuple(method for method in METHODS if method not in _NORMS)
_TIE_DB = 0.5
_FEW = 0.06  # of the convolutions: three of ResNet-50's
_NEVER_MET = Budget(sqnr_db=1e3)
_ALL = ("shift", "rounding", "norms")
# Name of a row -> which steps are turned on in it.
TURNED_ON: Mapping[str, tuple[str, ...]] = {
    "before": (),
    "+ shift": ("shift",),
    "+ rounding": ("rounding",),
    "+ norms": ("norms",),
    "all three": _ALL,
}


@dataclass(frozen=True)
class Chosen:
    """What the search chose, as far as the step let it.

    Attributes:
        method: of the scales.
        shifted: number of tensors that are shifted.
        second_order: whether second-order rounding of the weights is used.
        bias_correction: whether corrected biases are used.
        strength: of the equalization; None if ranges are not equalized.
        trunk: precision of the trunk.
    """

    method: str
    shifted: int
    second_order: bool
    bias_correction: bool
    strength: float | None
    trunk: str

    @classmethod
    def of(cls, report: CalibrationReport) -> "Chosen":
        """Return the choices that a report of the search holds."""
        correction, second, equalization = report.bias_correction, report.rounding, report.equalization
        return cls(
            report.method,
            len(report.shift.shifted),
            second is not None and second.used,
            correction is not None and correction.used,
            float(equalization.strength) if equalization is not None and equalization.used else None,
            report.trunk,
        )


@dataclass(frozen=True)
class Made:
    """An INT8 file that one search made.

    Attributes:
        name: of its row.
        path: of the file.
        chosen: what the search chose.
        seconds: of the search, without that for the FP16 file.
        peak_memory_mib: peak memory of the process during the search; None where the system does not report it.
        complete: whether all steps were turned on.
    """

    name: str
    path: Path
    chosen: Chosen
    seconds: float
    peak_memory_mib: int | None
    complete: bool = True


def make_steps(
    model: onnx.ModelProto,
    batches: Batches,
    held_out: HeldOut,
    options: SearchOptions,
    folder: Path,
    *,
    mixed: bool,
) -> Iterator[Made]:
    """Write and yield an INT8 file for each row of `TURNED_ON`, INT8 throughout, then others with all steps.

    These have a few of the costliest layers in float, or another trunk.

    Where the norms are off, the method is the one that the search took before it had them; the search for "+ norms"
    judged all of them.

    Args:
        model: FP32.
        batches: calibration images, see `export.int8.search.search`.
        held_out: other calibration images, which judge.
        options: the recipe's; the steps turn parts of them off.
        folder: for the files.
        mixed: whether the file as shipped keeps layers in float, so that it has a row of its own with another trunk.
    """
    plain = replace(options, sensitivity="never", method="auto", shift="never", rounding="nearest", effort="full")
    inputs = model, batches, held_out, _fp16(model, batches, held_out, plain)
    norms, made = _search("+ norms", *inputs, plain, folder)
    usual = method_before(norms.report.methods)
    for name, on in TURNED_ON.items():
        if name == "+ norms":
            yield replace(made, complete=False)
            continue
        step = replace(
            plain,
            method="auto" if "norms" in on else usual,
            shift="auto" if "shift" in on else "never",
            rounding="second_order" if "rounding" in on else "nearest",
        )
        yield replace(_search(name, *inputs, step, folder)[1], complete=on == _ALL)
    every = replace(plain, shift="auto", rounding="second_order")
    few = replace(every, sensitivity="always", max_kept=_FEW, int8=_NEVER_MET)
    yield _search(f"all three, {_FEW:.0%} of the convolutions in float", *inputs, few, folder)[1]
    other: Literal["fp32", "fp16"] = "fp32" if options.trunk == "fp16" else "fp16"
    yield _search(f"all three, trunk of {other.upper()}", *inputs, replace(every, trunk=other), folder)[1]
    if mixed:
        shipped = replace(options, trunk=other)
        yield _search(f"as shipped, trunk of {other.upper()}", *inputs, shipped, folder)[1]


def method_before(methods: Mapping[str, Distances]) -> str:
    """Return the method that the search took before it had norms and judged images one by one.

    That was the one with the highest SQNR of all held-out logits; within half a decibel, the one that agrees most.
    """
    known = {name: methods[name] for name in _BEFORE if name in methods}
    noise = {name: float("inf") if one.sqnr_db is None else one.sqnr_db for name, one in known.items()}
    close = [name for name in known if noise[name] >= max(noise.values()) - _TIE_DB or noise[name] == float("inf")]
    return max(close, key=lambda name: (known[name].top1_agreement, noise[name]))


def _fp16(model: onnx.ModelProto, batches: Batches, held_out: HeldOut, options: SearchOptions) -> Fp16Result:
    """Return the FP16 graph, which is the same in all rows, so that it is searched once."""
    statistics = collect_statistics(model, batches("ranges"), measured_tensors(model))[1]
    unfit = unfit_for_fp16(model, {name: channels.limit for name, channels in statistics.items()})
    return search_fp16(model, statistics, unfit, held_out, options, _track)


def _track(names: Sequence[str], words: str, unit: str) -> Iterable[str]:
    return progress_bar(names, desc=f"  {words}", unit=unit)


def _search(
    name: str,
    model: onnx.ModelProto,
    batches: Batches,
    held_out: HeldOut,
    fp16: Fp16Result,
    options: SearchOptions,
    folder: Path,
) -> tuple[SearchResult, Made]:
    forget_peak()
    start = time.perf_counter()
    result = search(model, batches, held_out, options, _track, fp16)
    seconds = round(time.perf_counter() - start, 1)
    path = folder / f"{name.replace(' ', '-').replace('+-', '')}.onnx"
    save_model(result.int8, path)
    return result, Made(f"INT8, {name}", path, Chosen.of(result.report), seconds, peak_memory_mib())


def forget_peak() -> None:
    """Let the peak memory of this process begin anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
