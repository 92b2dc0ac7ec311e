"""What the search for INT8 tried, step by step: its rows, what each step gained, what has no eighth bit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.int8.report import CalibrationReport, Distances, ShiftReport
from export.onnx_passes.layer_names import keras_layer
from export.words import count, listed
from pipeline.reporting.html import Bar, Chart, Table

NO_NUMBER = "equal, or not finite"  # where a distance has no SQNR
_NO_RELU = "no ReLU writes it, or its ReLU is not among those that quantize.shift asks for"


@dataclass(frozen=True)
class Tried:
    """Something that the search tried.

    Attributes:
        title: what was tried.
        distances: of the graph with it, on held-out images.
        used: whether the INT8 file has it.
    """

    title: str
    distances: Distances
    used: bool


@dataclass(frozen=True)
class Step:
    """A step of the search.

    Attributes:
        tried: what it tried.
        before: distances of the graph without it; None: there was none.
    """

    tried: Tried
    before: Distances | None = None


def all_tried(report: CalibrationReport) -> list[Tried]:
    """Return everything that was tried, in the order of the search."""
    equalization, shift = report.equalization, report.shift
    shifted = ", shifted" if shift.used else ""
    floats = _floats(report)
    tried = []
    if equalization:
        tried.append(Tried("channels not equalized", equalization.before, not equalization.used))
        best = equalization.strength if equalization.used else None
        tried += [
            Tried(f"channels equalized with strength {strength}", distances, strength == best)
            for strength, distances in equalization.strengths.items()
        ]
    tried += [
        Tried(f"scales by {name}{shifted}{floats}", distances, name == report.method)
        for name, distances in report.methods.items()
    ]
    if shift.plain and shift.used:
        tried.append(Tried(f"scales by {report.method}, not shifted{floats}", shift.plain, False))
    elif shift.after and not shift.used:
        tried.append(Tried(f"scales, shifted{floats}", shift.after, False))
    return tried + [step.tried for step in _later_steps(report)]


def steps(report: CalibrationReport) -> list[Step]:
    """Return the steps of the search, each with the graph that it began with, in their order."""
    equalization, shift = report.equalization, report.shift
    floats = _floats(report)
    scales = Tried(f"scales by {report.method}{floats}", report.methods[report.method], True)
    found = []
    if equalization:
        title = f"equalization with strength {equalization.strength}"
        found.append(Step(Tried(title, equalization.after, equalization.used), equalization.before))
    if shift.used and shift.after:
        shifted = f"{len(shift.shifted)} of {count(shift.quantized, 'tensor')} shifted"
        title = f"scales by {report.method}, {shifted}{floats}"
        found.append(Step(Tried(title, shift.after, True), shift.plain))
    else:
        found.append(Step(scales))
        found += [Step(Tried(f"shifted{floats}", shift.after, False), shift.plain)] if shift.after else []
    return found + _later_steps(report)


def _floats(report: CalibrationReport) -> str:
    """Return what the scales were compared with, see `export.int8.search`."""
    return ", weights in float" if report.rounding and report.rounding.used else ""


def _later_steps(report: CalibrationReport) -> list[Step]:
    """Return the steps behind the choice of the scales."""
    second, bias = report.rounding, report.bias_correction
    found = []
    if second:
        title = f"second-order rounding of weights, by {count(second.images, 'image')}"
        found.append(Step(Tried(title, second.after, second.used), second.before))
    if bias:
        found.append(Step(Tried("corrected biases", bias.after, bias.used), bias.before))
    if report.kept and report.mixed:
        title = f"most sensitive layers kept in float: {len(report.kept):,}"
        found.append(Step(Tried(title, report.mixed, True), report.all_int8))
    return found


def gains(report: CalibrationReport) -> Chart:
    """Draw the SQNR behind each step, with that of the graph without it as a mark."""
    title = "SQNR of INT8's logits on held-out images, step by step, dB (more is better)"
    return Chart(title, [_bar(step) for step in steps(report)], mark="without this step", kind="plot steps tried")


def _bar(step: Step) -> Bar:
    tried = step.tried
    value, worst = tried.distances.sqnr_db, tried.distances.worst_db
    before = step.before.sqnr_db if step.before else None
    gain = None if value is None or before is None else round(value - before, 1) + 0.0  # no minus before a zero
    remarks = [
        *([] if gain is None else [f"{gain:+.1f} dB"]),
        *([] if worst is None else [f"worst image {worst:.1f} dB"]),
        *([] if tried.used else ["not used"]),
    ]
    kind = "int8" if tried.used else "keras"
    shown = NO_NUMBER if value is None else f"{value:.1f} dB"
    return Bar(tried.title, math.nan if value is None else value, shown, kind, before, ", ".join(remarks))


def not_shifted(shift: ShiftReport) -> Table:
    """Group the quantized tensors that have no eighth bit by the reason."""
    reasons = {name: refusal.kind for name, refusal in shift.refused.items()}
    rows = [(f"{len(names)}", why, layers(names)) for why, names in grouped(reasons).items()]
    if shift.used and (others := shift.quantized - len(shift.shifted) - len(reasons)) > 0:
        rows.append((f"{others}", _NO_RELU, ""))
    return Table(("*tensors", "why they are not shifted", "behind the layers"), rows)


def grouped(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return each reason with the names that it is given for; the commonest first.

    Args:
        reasons: name -> why, such as "Conv reads it with padding".
    """
    groups: dict[str, list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault(why, []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def layers(names: Sequence[str]) -> str:
    """Return the Keras layers of some nodes or tensors, the first of many."""
    return listed(dict.fromkeys(keras_layer(name) for name in names))
