"""What the search for INT8 tried, step by step: its rows, what each step gained, and what stays without the eighth bit."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.int8.report import CalibrationReport, Distances, ShiftReport
from export.onnx_passes.layer_names import keras_layer
from export.words import count, listed
from pipeline.reporting.html import Bar, Chart, Table

NOT_A_NUMBER = "equal, or not finite"  # where a distance has no SQNR
_NAMES = re.compile(r" (?:'[^']*'|\"[^\"]*\")")  # of nodes, as `repr` writes them
_NO_RELU = "no ReLU writes it, or its ReLU is not among those that quantize.shift asks for"


@dataclass(frozen=True)
class Tried:
    """Something that the search tried.

    Attributes:
        title: what was tried.
        distances: of the graph with it, on held-out images.
        used: whether the INT8 file has it.
        before: of the graph without it; None: nothing comes before.
    """

    title: str
    distances: Distances
    used: bool
    before: Distances | None = None


def methods_tried(report: CalibrationReport) -> list[Tried]:
    """Return the calibration methods that were tried, in their order."""
    return [
        Tried(f"scales by {name}", distances, name == report.method) for name, distances in report.methods.items()
    ]


def steps_tried(report: CalibrationReport) -> list[Tried]:
    """Return what was tried behind the choice of the scales, in the order of the search."""
    shift, second, bias = report.shift, report.rounding, report.bias_correction
    tried = []
    if shift.plain and shift.after:
        subject = f"{len(shift.shifted)} of {count(shift.quantized, 'tensor')}" if shift.used else "all that can"
        tried.append(Tried(f"eighth bit behind ReLUs: {subject}", shift.after, shift.used, shift.plain))
    if second:
        title = f"second-order rounding of weights, on {count(second.images, 'image')}"
        tried.append(Tried(title, second.after, second.used, second.before))
    if bias:
        tried.append(Tried("corrected biases", bias.after, bias.used, bias.before))
    if report.kept and report.mixed:
        title = f"most sensitive layers kept in float: {len(report.kept):,}"
        tried.append(Tried(title, report.mixed, True, report.all_int8))
    return tried


def gains(report: CalibrationReport) -> Chart:
    """Draw the SQNR of each step, with what it gained over the graph without it, and the worst image as a mark."""
    steps = steps_tried(report)
    first = steps[0].before if steps else report.all_int8
    start = Tried(f"scales by {report.method}", first or report.all_int8, True)
    bars = [_bar(step) for step in (start, *steps)]
    title = "SQNR of INT8's logits on held-out images, step by step, dB (more is better)"
    return Chart(title, bars, mark="the worst image", kind="plot steps tried")


def _bar(step: Tried) -> Bar:
    value, worst = step.distances.sqnr_db, step.distances.worst_db
    before = step.before.sqnr_db if step.before else None
    remarks = [
        *([f"{value - before:+.1f} dB"] if value is not None and before is not None else []),
        *([] if worst is None else [f"worst image {worst:.1f} dB"]),
        *([] if step.used else ["not used"]),
    ]
    kind = "int8" if step.used else "keras"
    shown = NOT_A_NUMBER if value is None else f"{value:.1f} dB"
    return Bar(step.title, math.nan if value is None else value, shown, kind, worst, ", ".join(remarks))


def not_shifted(shift: ShiftReport) -> Table:
    """Group the quantized tensors that have no eighth bit by the reason."""
    reasons = dict(shift.refused)
    rows = [(f"{len(names)}", why, layers(names)) for why, names in grouped(reasons).items()]
    if shift.used and (others := shift.quantized - len(shift.shifted) - len(reasons)) > 0:
        rows.append((f"{others}", _NO_RELU, ""))
    return Table(("*tensors", "why they are not shifted", "behind the layers"), rows)


def grouped(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return each reason, without the names of nodes in it, with the names that it is given for; the commonest first.

    Args:
        reasons: name -> why, such as "Conv 'a/Conv' reads it with padding".
    """
    groups: dict[str, list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault(_NAMES.sub("", why), []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def layers(names: Sequence[str]) -> str:
    """Return the Keras layers of some nodes or tensors, the first of many."""
    return listed(dict.fromkeys(keras_layer(name) for name in names))
