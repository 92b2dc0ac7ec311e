"""The table of faults: what was planted, and whether the verdict caught it and named hop, layer and cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.examine import Examination
from benchmarks.faults.planted import Planted
from export.records import read_record
from export.words import aligned, count
from pipeline.artifacts.diagnosis import Cause
from pipeline.artifacts.machine import Machine
from pipeline.artifacts.parity_report import Overall

SCHEMA = 1
CONTROL = "none"  # artifacts without a fault, which have to pass


@dataclass(frozen=True)
class Row:
    """One planted fault, and what was said of it.

    Attributes:
        fault: its name in the catalogue; `CONTROL` for none.
        title: in words.
        form: how it was planted.
        model: recipe whose artifacts it was planted into, or "small model".
        what: was changed.
        run: the run at fault.
        layers: Keras layers that count as right; empty where it is in none.
        causes: causes that count as right.
        verdict: over all comparisons.
        caught: whether the run at fault fails; of the control, whether anything does.
        hop: whether the run at fault, and no other, is said to be at fault.
        layer: whether the layer is right; None where the fault is in none.
        cause: whether the cause is right.
        said_runs: runs that were said to be at fault.
        said_layer: the layer that was named.
        said_cause: the cause that was named; None where there was no hint.
        said: the hint and its evidence.
        seconds: time of verification and explanation.
    """

    fault: str
    title: str
    form: str
    model: str
    what: str
    run: str
    layers: tuple[str, ...]
    causes: tuple[Cause, ...]
    verdict: Overall
    caught: bool
    hop: bool
    layer: bool | None
    cause: bool
    said_runs: tuple[str, ...]
    said_layer: str
    said_cause: Cause | None
    said: str
    seconds: float

    @property
    def as_it_should_be(self) -> bool:
        """Whether a fault was caught at the right hop; of the control, whether nothing was said."""
        return self.verdict == "pass" if self.fault == CONTROL else self.caught and self.hop


@dataclass(frozen=True)
class Table:
    """All rows, and what they were measured with.

    Attributes:
        rows: the control of each model before its faults.
        images: number of test images.
        seed: of what was drawn.
        machine: that measured.
        commit: of the code; None outside a repository.
        schema: version of this file format.
    """

    rows: tuple[Row, ...]
    images: int
    seed: int
    machine: Machine
    commit: str | None
    schema: int = SCHEMA

    @property
    def faults(self) -> tuple[Row, ...]:
        """The rows with a fault."""
        return tuple(row for row in self.rows if row.fault != CONTROL)


def make_row(fault: str, title: str, form: str, model: str, planted: Planted, found: Examination) -> Row:
    """Return the row of a fault."""
    hint = found.hint(planted)
    return Row(
        fault,
        title,
        form,
        model,
        planted.change.what,
        planted.run or "decoding of files",
        planted.change.layers,
        planted.change.causes,
        found.verdict,
        found.catches(planted),
        found.names_hop(planted),
        found.names_layer(planted),
        found.names_cause(planted),
        found.runs,
        hint.layer if hint is not None else "",
        hint.cause if hint is not None else None,
        f"{hint.text} {hint.evidence}" if hint is not None else "",
        round(found.seconds, 1),
    )


def control_row(model: str, found: Examination) -> Row:
    """Return the row of artifacts without a fault."""
    hints, failed = found.hints, found.verdict == "fail"
    said = hints[0] if hints else None
    return Row(
        CONTROL, "no fault", "", model, "nothing", "", (), (), found.verdict, failed, not found.runs, None, not hints,
        found.runs, said.layer if said else "", said.cause if said else None,
        f"{said.text} {said.evidence}" if said else "", round(found.seconds, 1),
    )  # fmt: skip


def summary(rows: Sequence[Row]) -> str:
    """Return in one sentence how many faults were caught, and of how many hop, layer and cause were named."""
    faults = [row for row in rows if row.fault != CONTROL]
    placed = [row for row in faults if row.layer is not None]
    return (
        f"{sum(row.caught for row in faults)} of {count(len(faults), 'fault')} caught; right: the hop of "
        f"{sum(row.hop for row in faults)}, the cause of {sum(row.cause for row in faults)}, the layer of "
        f"{sum(row.layer is True for row in placed)} of the {len(placed)} that are in one"
    )


_HEAD = ("fault", "planted", "model", "at fault", "caught", "hop", "layer", "cause")


def table_lines(rows: Sequence[Row]) -> list[str]:
    """Return the rows as a table for a terminal."""
    return aligned([_HEAD, *map(_cells, rows)])


def markdown(table: Table) -> str:
    """Return the table as a page."""
    lines = [
        "# Planted faults",
        "",
        f"{summary(table.rows)}. A wrong answer stands in brackets.",
        "",
        f"| {' | '.join(_HEAD)} |",
        f"|{'---|' * len(_HEAD)}",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in _cells(row))} |" for row in table.rows),
        "",
        f"Measured on {count(table.images, 'test image')} at most, seed {table.seed}, commit "
        f"{(table.commit or 'unknown')[:12]}, {table.machine.cpu}, {table.machine.os}, Python {table.machine.python}, "
        + ", ".join(f"{name} {version}" for name, version in table.machine.packages.items() if version)
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    if row.fault == CONTROL:
        said = row.said_cause or "none"
        return row.title, "", row.model, "", row.verdict, "yes" if row.hop else "[some]", "", said
    layer = "" if row.layer is None else row.said_layer if row.layer else f"[{row.said_layer or 'none'}]"
    cause = row.said_cause or "none"
    hop = "yes" if row.hop else f"[{', '.join(row.said_runs) or 'none'}]"
    return (
        *(row.title, row.what, row.model, row.run, "yes" if row.caught else "NO", hop, layer),
        cause if row.cause else f"[{cause}]",
    )


def read_table(path: Path) -> Table:
    """Read a table.

    Raises:
        ProjectError: missing, damaged, or of another schema; with the file and the key.
    """
    return read_record(Table, path, remedy="Run python -m benchmarks.faults again.", what="table of faults")
