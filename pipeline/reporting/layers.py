"""The report's section on layers: every Keras layer against its tensor in each file, and where the error comes from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from export.words import count
from pipeline.artifacts.layer_report import LayerReport, LayerRow, LayerRun
from pipeline.artifacts.parity_report import FAIL, PASS
from pipeline.artifacts.paths import LAYERS
from pipeline.reporting.glossary import COSINE, OWN_ERROR, RANGE_USED, SATURATED, SQNR
from pipeline.reporting.headline import short_name
from pipeline.reporting.html import Bar, Cell, Chart, Section, Table, badge, number, section, share
from pipeline.reporting.records import Explanations
from pipeline.terminal.command_line import Invocation

TITLE = "Layers against Keras"
WORST = 10
DRAWN = 12  # layers in the chart of how the error grows, evenly along the depth
MOST_ROWS = 400  # layers of a run in its table; layers.json has all of them
DEPTHS = (0.0, 6.0, 20.0, 40.0)  # dB above the threshold where the next colour of the strip begins
LEGEND = (
    ("below", "below the threshold"),
    *(("d0", "up to 6 dB above"), ("d1", "to 20 dB"), ("d2", "to 40 dB"), ("d3", "more, or equal")),
)
HEAD = (
    *("own error", "layer", "kind", "*own SQNR, dB", "*total SQNR, dB", "*cosine"),
    *("*saturated", "*range used", "tensor"),
)


@dataclass(frozen=True)
class Strip:
    """A row of coloured cells, one a layer in the order of the model.

    Attributes:
        title: what it shows; plain text.
        cells: for each layer the CSS class and its numbers as text.
        summary: the strip in words, for those who do not see it.
    """

    title: str
    cells: Sequence[tuple[str, str]]
    summary: str


@dataclass(frozen=True)
class ShownRun:
    """A run as the page shows it.

    Attributes:
        run: the run.
        first: which layer is the first below the threshold, as a sentence.
        strips: own error, and total error.
        growth: how the error grows along the depth.
        worst: table of the layers with the largest own errors.
        every: table of all layers.
        left_out: how many more layers there are.
    """

    run: LayerRun
    first: str
    strips: Sequence[Strip]
    growth: Chart
    worst: Table
    every: Table
    left_out: int


def layers_section(explanations: Explanations, invocation: Invocation) -> Section:
    """Make the section; without a record of the present files, the command that makes one."""
    report, why = explanations.layers, explanations.why_not.get(LAYERS, "")
    if report is None:
        command = invocation.command("verify", "python", ["--layers"])
        return section(TITLE, "no_layers.html.j2", why=why, command=command)
    return section(
        TITLE,
        "layers.html.j2",
        (OWN_ERROR, SQNR, COSINE, SATURATED, RANGE_USED),
        report=report,
        runs=[_shown(run, report) for run in report.runs if run.rows],
        without_rows=[f"{run.run}: {run.note}" for run in report.runs if not run.rows],
        legend=LEGEND,
        without=Table(("layer", "why it has no tensor"), list(report.without_tensor.items())),
    )


def _shown(run: LayerRun, report: LayerReport) -> ShownRun:
    worst = sorted(run.rows, key=_own)[:WORST]
    head = HEAD[:-1]
    return ShownRun(
        run,
        _first(run),
        strips=(_strip(run, own=True), _strip(run, own=False)),
        growth=_growth(run),
        worst=Table(head, [_row(row, run, report)[:-1] for row in worst]),
        every=Table(HEAD, [_row(row, run, report) for row in run.rows[:MOST_ROWS]]),
        left_out=max(0, len(run.rows) - MOST_ROWS),
    )


def _first(run: LayerRun) -> str:
    if not run.first_below:
        return f"No layer's own error is too large: each has {run.threshold_db:g} dB or more."
    row = next((row for row in run.rows if row.layer == run.first_below), None)
    unit = " dB" if row and row.own_sqnr_db is not None else ""
    reached = f" ({_decibels(row.own_sqnr_db, row.own_finite)}{unit})" if row else ""
    below = sum(_own(row) < run.threshold_db for row in run.rows)
    number = f"; {count(below, 'layer is', 'layers are')} below" if below > 1 else ""
    return (
        f"First layer whose own error is too large: {run.first_below}{reached}, {run.threshold_db:g} dB asked{number}."
    )


def _value(decibels: float | None, finite: bool) -> float:
    """An SQNR as a number: infinite where both are equal, minus infinity where not all is finite."""
    if decibels is not None:
        return decibels
    return math.inf if finite else -math.inf


def _decibels(decibels: float | None, finite: bool) -> str:
    if decibels is not None:
        return f"{decibels:.1f}"
    return "equal" if finite else "NaN or infinite"


def _own(row: LayerRow) -> float:
    return _value(row.own_sqnr_db, row.own_finite)


def _strip(run: LayerRun, own: bool) -> Strip:
    cells, below = [], 0
    for row in run.rows:
        pair = (row.own_sqnr_db, row.own_finite) if own else (row.sqnr_db, row.finite)
        above = _value(*pair) - run.threshold_db
        depth = sum(above >= limit for limit in DEPTHS) - 1
        below += depth < 0
        cells.append((f"d{depth}" if depth >= 0 else "below", f"{row.layer}: {_decibels(*pair)}"))
    title = "Own error of each layer" if own else "Total error up to each layer"
    return Strip(title, cells, f"{title}: {below:,} of {count(len(cells), 'layer')} below {run.threshold_db:g} dB")


def _growth(run: LayerRun) -> Chart:
    """Draw the total SQNR of some layers along the depth, with their own as the mark."""
    last = len(run.rows) - 1
    chosen = sorted({round(at * last / (DRAWN - 1)) for at in range(DRAWN)}) if last >= 0 else []
    bars = []
    for row in (run.rows[at] for at in chosen):
        total = _value(row.sqnr_db, row.finite)
        length = math.nan if total == -math.inf else total
        more = f"own {_decibels(row.own_sqnr_db, row.own_finite)}"
        bars.append(Bar(row.layer, length, _decibels(row.sqnr_db, row.finite), run.precision, row.own_sqnr_db, more))
    title = f"{short_name(run.run)}: total SQNR along the depth, dB (more is closer)"
    return Chart(title, bars, "the layer's own error alone", kind="plot growth")


def _row(row: LayerRow, run: LayerRun, report: LayerReport) -> tuple[str | Cell, ...]:
    missed = _own(row) < run.threshold_db
    return (
        badge(FAIL, "too large") if missed else badge(PASS, "fine"),
        row.layer,
        report.kinds.get(row.layer, ""),
        _decibels(row.own_sqnr_db, row.own_finite),
        _decibels(row.sqnr_db, row.finite),
        number(row.cosine, ".5f"),
        share(row.saturated),
        share(row.range_used),
        Cell(row.tensor, code=True),
    )
