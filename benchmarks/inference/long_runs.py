"""One run of ours over very many small images: its memory must not grow with their number."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.inference.photos import make_small_pictures, write_list
from benchmarks.inference.process import Look, watch, without_folders
from benchmarks.inference.record import LongRun, at_most
from benchmarks.inference.scenario import infer_words
from export.errors import ProjectError
from pipeline.workflow.context import Context

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
MOST_MB = 1000.0
MOST_GROWTH = 1.05  # of the memory, from the second quarter of the time to the last


def million_lines(context: Context, rows: int, work: Path) -> LongRun:
    """Classify a list of ``rows`` lines; the most memory is judged."""
    file = work / "list.txt"
    inputs = write_list(make_small_pictures(work / "small", rows), file)
    return _run("list lines", context, inputs, ["--list", str(file)], work, growth=False)


def small_images(context: Context, rows: int, work: Path) -> LongRun:
    """Classify ``rows`` small images in folders; the growth of the memory is judged."""
    folders = make_small_pictures(work / "small", rows)
    inputs = len(folders) * len(list(folders[0].iterdir()))
    return _run("small images", context, inputs, [str(folder) for folder in folders], work, growth=True)


def _run(name: str, context: Context, inputs: int, words: Sequence[str], work: Path, *, growth: bool) -> LongRun:
    output = work / "rows.csv"
    model = context.recipe.name
    try:
        finished = watch([*infer_words(context, output), *words], interval=LOOK_SECONDS)
    except ProjectError as error:
        log.error("%s: %s", name, error)
        return LongRun(name, model, inputs, error=without_folders(str(error)))
    with output.open("rb") as file:
        rows = sum(1 for _ in file) - 1
    parts = quarters(finished.looks, finished.seconds)
    if growth:
        ratio = parts[3] / parts[1] if len(parts) == 4 else None
        limit = at_most("memory of the last quarter of the time over that of the second", "times", ratio, MOST_GROWTH)
    else:
        peak = None if finished.peak_bytes is None else finished.peak_bytes / 1e6
        limit = at_most("most memory", "MB", peak, MOST_MB)
    return LongRun(
        name=name,
        model=model,
        inputs=inputs,
        rows=rows,
        wall_seconds=round(finished.seconds, 2),
        peak_mib=None if finished.peak_bytes is None else finished.peak_bytes >> 20,
        quarters_mib=parts,
        limits=(limit,),
    )


def quarters(looks: Sequence[Look], seconds: float) -> tuple[float, ...]:
    """Return the median memory in MiB in each quarter of the time; none where a quarter was not looked at."""
    parts: list[list[int]] = [[], [], [], []]
    for look in looks:
        parts[min(3, int(4 * look.seconds / seconds))].append(look.bytes)
    return tuple(round(median(part) / 2**20, 2) for part in parts) if all(parts) else ()
