"""Run the candidates of a scenario, each as a process of its own, in turns A B C | C B A."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.inference.alone import BACKEND, PRECISION
from benchmarks.inference.process import INTERVAL, watch, without_folders
from benchmarks.inference.record import (
    COMPUTE,
    DECODE,
    ONE,
    OURS,
    SCRIPT,
    TUTORIAL,
    WHAT,
    Candidate,
    Comparison,
    Contest,
    Limit,
    Turn,
    at_most,
    compare_turns,
)
from benchmarks.timing import in_turns
from export.errors import ProjectError
from export.words import count
from pipeline.artifacts.paths import KERAS, ONNX
from pipeline.terminal.command_line import Invocation
from pipeline.workflow.context import Context

log = logging.getLogger(__name__)

FIRST_ROW_SECONDS = 5.0
FIRST_ROWS = 3  # runs in which it is looked for


@dataclass(frozen=True)
class Scenario:
    """What is compared.

    Attributes:
        name: of the scenario.
        context: of the recipe, which was run up to ``verify``.
        photos: folder of the images, and of nothing else.
        one: folder of one of them.
        targets: the ratio that ours has to reach, by candidate and whether start-up is included.
        tutorial: whether the tutorials' loop takes part, which is slow.
        first_row: whether the first row's way from the answer to a file is judged.
    """

    name: str
    context: Context
    photos: Path
    one: Path
    targets: Mapping[tuple[str, bool], float]
    tutorial: bool = False
    first_row: bool = False


def run_scenario(scenario: Scenario, rounds: int, work: Path) -> Contest:
    """Measure every candidate in each round, after one image each that is not counted.

    Args:
        scenario: what is compared.
        rounds: number of turns of each candidate.
        work: an empty folder, for what the candidates write.
    """
    context, card = scenario.context, scenario.context.card()
    classes = work / "classes.json"
    classes.write_text(json.dumps(list(card.classes)), encoding="utf-8")
    images = sorted(scenario.photos.iterdir())
    commands = _commands(scenario, classes, work)
    turns: dict[str, list[Turn]] = {name: [] for name in commands}
    failed: dict[str, str] = {}

    def take(name: str, folder: Path) -> list[float]:
        output = _output(work, name)
        output.unlink(missing_ok=True)
        finished = watch(commands[name](folder))
        seconds, classifying = (_number(finished.result.get(key)) for key in ("seconds", "classify_seconds"))
        peak = None if finished.peak_bytes is None else finished.peak_bytes >> 20
        turn = Turn(round(finished.seconds, 3), seconds, peak, classifying)
        if folder == (scenario.one if name == ONE else scenario.photos):
            turns[name].append(turn)
            log.info("  %s: %s: %.2f s with its start", scenario.name, name, turn.wall_seconds)
        return [1000 * turn.wall_seconds]

    def on_error(name: str, error: Exception) -> None:
        log.error("%s: %s", name, error)
        failed[name] = without_folders(str(error))
        del turns[name]

    warm = in_turns({name: partial(take, name, scenario.one) for name in commands}, 1, on_error)
    turns = {name: [] for name in warm}
    in_turns(
        {name: partial(take, name, scenario.one if name == ONE else scenario.photos) for name in warm}, rounds, on_error
    )
    turns = {name: taken for name, taken in turns.items() if taken}
    if OURS not in turns:
        raise ProjectError(f"Expected `infer` to run. Received: {failed.get(OURS)}")
    ours = turns[OURS]
    answers = _answers(_output(work, OURS))
    candidates = [
        Candidate(
            name,
            WHAT[name],
            tuple(taken),
            _agreeing(answers, _output(work, name)) if name in (SCRIPT, TUTORIAL) else None,
        )
        for name, taken in turns.items()
    ]
    with Image.open(images[0]) as first:
        size = first.size
    return Contest(
        name=scenario.name,
        model=context.recipe.name,
        input_size=card.size,
        batch_size=context.recipe.infer.batch_size,
        images=len(images),
        image_size=size,
        image_bytes=round(sum(path.stat().st_size for path in images) / len(images)),
        candidates=tuple(candidates),
        comparisons=tuple(_comparisons(ours, candidates, scenario.targets)),
        limits=(first_row(context, scenario.photos, work / "first"),) if scenario.first_row else (),
        failed=failed,
    )


def recipe_words(context: Context) -> list[str]:
    """Return the words that name a recipe on the command line of a process in another folder."""
    invocation = Invocation(context.recipe_path.resolve(), context.artifacts.resolve(), context.overrides)
    return ["-c", str(invocation.recipe_path), *invocation.options]


def infer_words(context: Context, output: Path) -> list[str]:
    """Return the command of ours, without the inputs: the FP32 file on the CPU, as the others compute it."""
    return [
        *(sys.executable, "-m", "pipeline", "infer", *recipe_words(context), "--backend", BACKEND),
        *("--precision", PRECISION, "--json", "--quiet", "-o", str(output)),
    ]


def _commands(scenario: Scenario, classes: Path, work: Path) -> dict[str, Callable[[Path], Sequence[str]]]:
    """Return a function from the folder of images to the command, by candidate."""
    context, card = scenario.context, scenario.context.card()
    root = context.root.resolve()
    batch = str(context.recipe.infer.batch_size)

    def script(module: str, model: str, name: str, *options: str) -> Callable[[Path], Sequence[str]]:
        return lambda folder: [
            *(sys.executable, "-m", f"benchmarks.inference.{module}", str(folder), "--model", str(root / model)),
            *("--classes", str(classes), "--output", str(_output(work, name)), *options),
        ]

    def alone(part: str) -> Callable[[Path], Sequence[str]]:
        return lambda folder: [
            *(sys.executable, "-m", "benchmarks.inference.alone", part, str(folder), *recipe_words(context)),
            *("--json", "--quiet"),
        ]

    def ours(name: str) -> Callable[[Path], Sequence[str]]:
        return lambda folder: [*infer_words(context, _output(work, name)), str(folder)]

    commands: dict[str, Callable[[Path], Sequence[str]]] = {
        OURS: ours(OURS),
        SCRIPT: script("threaded", ONNX["fp32"], SCRIPT, "--resize", card.decode.resize, "--batch-size", batch),
        COMPUTE: alone("compute"),
        DECODE: alone("decode"),
        ONE: ours(ONE),
    }
    if scenario.tutorial:
        commands[TUTORIAL] = script("tutorial", KERAS, TUTORIAL, "--preprocessing", card.preprocessing.mode)
    return commands


def _number(reported: object) -> float | None:
    return round(float(reported), 6) if isinstance(reported, (int, float)) else None


def _output(work: Path, name: str) -> Path:
    return work / f"{re.sub('[^a-z]+', '-', name)}.csv"


def _stands(mark: bytes, folder: Path) -> bool:
    """Return whether a file of this folder, or of one in it, holds the mark in its first bytes."""
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        try:
            with path.open("rb") as file:
                if mark in file.read(2**16):
                    return True
        except OSError:  # a folder, or a file that was renamed meanwhile
            continue
    return False


def _answers(path: Path) -> dict[str, str]:
    """Return the best class of each image of a CSV file, by the image's path."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["path"]: row["class"] for row in csv.DictReader(file)}


def _agreeing(answers: Mapping[str, str], path: Path) -> int:
    theirs = _answers(path)
    return sum(theirs.get(image) == name for image, name in answers.items())


def _comparisons(
    ours: Sequence[Turn], candidates: Sequence[Candidate], targets: Mapping[tuple[str, bool], float]
) -> list[Comparison]:
    return [
        compare_turns(ours, other, startup=startup, target=targets.get((other.name, startup)))
        for other in candidates
        for startup in (False, True)
        if other.name not in (OURS, ONE) and not (startup and other.name in (COMPUTE, DECODE))
    ]


def first_row(context: Context, photos: Path, work: Path) -> Limit:
    """Measure how long the first row takes from its answer into a file.

    Args:
        context: of the recipe.
        photos: folder of the images.
        work: a folder that is made, for what `infer` writes.
    """
    work.mkdir()
    note, output, first = work / "answered", work / "rows.csv", min(photos.iterdir())
    mark = os.fsencode(str(first)) + b",ok,"  # the list of inputs, which may lie there too, has no status
    waits = []
    for _ in range(FIRST_ROWS):
        note.unlink(missing_ok=True)
        output.unlink(missing_ok=True)
        seen: list[float] = []

        def look(seen: list[float] = seen) -> None:
            if not seen and _stands(mark, work):
                seen.append(time.monotonic())

        words = ["-m", "benchmarks.inference.first_answer", str(note), *infer_words(context, output)[3:], str(photos)]
        watch([sys.executable, *words], at_each_look=look)
        if seen and note.exists():
            waits.append(seen[0] - float(note.read_text("ascii")))
    why = f"the longest of {count(len(waits), 'run')}, looked for every {INTERVAL} s"
    return at_most("first row in a file, after the first answer", "s", max(waits, default=None), FIRST_ROW_SECONDS, why)


def refuse_unlike(context: Context, resizes: Sequence[str], modes: Sequence[str] = ()) -> None:
    """Refuse a recipe whose images the others' scripts would not treat as its card does.

    Raises:
        ProjectError: another resize, or another preprocessing where ``modes`` are given.
    """
    card: Any = context.card()
    for key, value, known in (
        ("data.resize", card.decode.resize, resizes),
        ("preprocessing", card.preprocessing.mode, modes),
    ):
        if known and value not in known:
            raise ProjectError(
                f"Expected a recipe with {key} {' or '.join(known)}, which the scripts know. Received: {value} in "
                f"{context.recipe_path}. Name another recipe."
            )
    for name in (KERAS, *ONNX.values()):
        if not (context.root / name).is_file():
            raise ProjectError(
                f"Expected {context.root / name}. Received: no such file. Run `{context.command('run')}` first."
            )
