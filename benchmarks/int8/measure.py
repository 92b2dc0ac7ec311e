"""A step of a network, searched in a process of its own and judged here, on images that chose nothing."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.inference.process import watch
from benchmarks.int8.networks import read_images
from benchmarks.int8.record import Row, distances, gain, skipped
from benchmarks.int8.step import EARLIER, STEPS
from benchmarks.telemetry import commit
from export.files import ROOT
from export.int8.simulate import Judged
from export.metrics.distances import top_classes
from export.metrics.per_image import sqnr_by_image

log = logging.getLogger(__name__)

_STEP = Path(__file__).with_name("step.py")


@dataclass(frozen=True)
class _ByImage:
    """The test images' own distances: SQNR in dB (N,), and whether each has FP32's top class, bool (N,)."""

    sqnr_db: np.ndarray
    agreed: np.ndarray


def measure(network: Path, steps: Iterable[str], earlier: Path | None) -> list[Row]:
    """Run the steps of a network, one after the other.

    Args:
        network: folder of `benchmarks.int8.networks.make_network`.
        steps: names of `benchmarks.int8.step.STEPS` and `EARLIER`.
        earlier: the folder of the earlier commit's code, for the steps of `EARLIER`.

    Returns:
        A row for each step. Each has the gains over the row "earlier" and over the row before it; "shipped" over
        "earlier shipped".

    Raises:
        ProjectError: a search failed, with the end of its message.
    """
    labels = read_images(network).test_labels
    rows: list[Row] = []
    seen: dict[str, _ByImage] = {}
    for step in steps:
        code = earlier if earlier is not None and step in EARLIER else ROOT
        with tempfile.TemporaryDirectory() as folder:
            logits = Path(folder) / "logits.npz"
            found = watch([sys.executable, str(_STEP), str(code), str(network), step, str(logits)]).result
            with np.load(logits, allow_pickle=False) as file:
                reference, int8 = file["reference"], file["int8"]
        own = _ByImage(sqnr_by_image(reference, int8), top_classes(reference) == top_classes(int8))
        report = found["report"]
        shift = report.get("shift", {})
        rows.append(
            Row(
                step=step,
                commit=commit(code),
                **distances(Judged.of(reference, int8, labels)),  # type: ignore[arg-type]
                method=report["method"],
                int8_convolutions=report["int8_convolutions"],
                convolutions=report["convolutions"],
                kept=tuple(report["kept"]),
                quantized=shift.get("quantized"),
                shifted=len(shift["shifted"]) if shift else None,
                skipped=skipped(report, shifting=(STEPS | EARLIER)[step].get("shift") != "never"),
                gains={
                    name: gain(seen[name].sqnr_db, own.sqnr_db, (seen[name].agreed, own.agreed))
                    for name in _compared(step, list(seen))
                },
                seconds=found["seconds"],
                peak_memory_mib=found["peak_memory_mib"],
            )
        )
        seen[step] = own
        log.info("  %s", describe(rows[-1]))
    return rows


def _compared(step: str, before: list[str]) -> list[str]:
    """Return the steps that a step is compared with."""
    if step in ("shipped", "fast", "earlier shipped"):
        return [name for name in ("earlier shipped",) if name in before]
    return list(dict.fromkeys(name for name in (*before[:1], *before[-1:]) if name != "earlier shipped"))


def describe(row: Row) -> str:
    """Return a row as a line of text."""
    values = (f"{'?' if value is None else format(value, '.1f')}" for value in (row.sqnr_db, row.median_db, row.low_db))
    worst = "?" if row.worst_db is None else format(row.worst_db, ".1f")
    changes = ", ".join(
        f"{entry.median_db:+.2f} dB and {entry.agreement:+.2%} over {name}{' (worse)' if entry.worse else ''}"
        for name, entry in row.gains.items()
    )
    return (
        f"{row.step}: SQNR {' / '.join(values)} / {worst} dB (all, median, 5 %, worst), agreement "
        f"{row.top1_agreement:.1%}, {row.lost} lost, {row.gained} gained, {row.int8_convolutions} of "
        f"{row.convolutions} convolutions, {row.seconds:.0f} s{'; ' if changes else ''}{changes}"
    )
