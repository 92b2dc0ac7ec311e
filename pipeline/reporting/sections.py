"""The report's sections on the recipe, engines and predictions; commands that the page advises."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from export.errors import ImageError, ProjectError
from export.tensorrt.sidecar import Sidecar, read_sidecar
from export.words import count, sentence
from pipeline.artifacts.array_rows import each_row
from pipeline.artifacts.manifest import Manifest, read_result, read_stage
from pipeline.artifacts.parity_report import PASS, ParityReport, run_name
from pipeline.artifacts.paths import PARITY, PREDICTIONS, REFERENCE, Artifacts
from pipeline.artifacts.results import Built, Inferred
from pipeline.artifacts.stage_files import Prediction, image_file, read_predictions
from pipeline.models.model_card import ModelCard
from pipeline.recipe.load import SECTIONS, recipe_slice
from pipeline.recipe.schema import Recipe
from pipeline.reporting.charts import data_uri, read_labels
from pipeline.reporting.html import Cell, Section, Table, badge, section, size
from pipeline.reporting.validity import digest_now, other_inputs
from pipeline.terminal.command_line import ARTIFACTS, Invocation

DEFAULT_RECIPE = "digits"  # of the Makefile


def recipe_section(recipe: Recipe, invocation: Invocation, verify: Manifest | None) -> Section:
    """Make the section: values that differ from the defaults, without paths and permissions, which affect no result."""
    values, defaults = (_flat(recipe_slice(each, SECTIONS)) for each in (recipe, Recipe(recipe.name)))
    changed = [
        tuple(Cell(_shown(cell), code=True) for cell in (name, values.get(name), defaults.get(name)))
        for name in sorted(values.keys() | defaults.keys())
        if values.get(name) != defaults.get(name)
    ]
    return section(
        "Recipe",
        "recipe.html.j2",
        name=recipe.name,
        file=invocation.recipe_path.name,
        command=make(invocation, "run", verify),
        changed=Table(("key", "here", "default"), changed, titled=False),
    )


def make(invocation: Invocation, target: str, verify: Manifest | None = None) -> str:
    """Return the command for a make target, or for the same verb of the CLI where make cannot name the recipe.

    Args:
        invocation: recipe, overrides, artifacts.
        target: such as ``run``; it must be a verb of ``python -m pipeline`` too.
        verify: the record of the verify stage; if it saw a GPU, the command has ``GPU=1``. Defaults to None.
    """
    path, name, words = invocation.recipe_path, invocation.recipe_path.stem, invocation.options
    known = path == Path("configs") / f"{name}.yaml" and shlex.quote(name) == name and invocation.artifacts == ARTIFACTS
    if not known or any("\n" in word for word in words):
        return invocation.command(target, "python")
    gpu = "GPU=1 " if verify is not None and verify.environment.get("gpu") else ""
    recipe = "" if name == DEFAULT_RECIPE else f"RECIPE={name} "
    # The shell removes the outer quotes, make one of two dollars, and the shell that make starts the inner quotes.
    arguments = f"ARGS={shlex.quote(shlex.join(words).replace('$', '$$'))} " if words else ""
    return f"{gpu}{recipe}{arguments}make {target}"


def make_with(invocation: Invocation, overrides: Sequence[str], target: str, verify: Manifest | None) -> str:
    """Return `make`'s command with other recipe values, which replace earlier overrides of the same keys."""
    keys = {override.partition("=")[0].strip() for override in overrides}
    others = [override for override in invocation.overrides if override.partition("=")[0].strip() not in keys]
    return make(replace(invocation, overrides=[*others, *overrides]), target, verify)


def when(verify: Manifest | None) -> str:
    """Return when the verdict was given, as text; "" where its record does not say."""
    try:
        moment = datetime.fromisoformat(verify.finished if verify else "")
        moment = moment.astimezone(timezone.utc) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        return ""
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _shown(value: Any) -> str:
    """A value as a recipe writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]" if len(value) <= 20 else count(len(value), "value")
    return value if isinstance(value, str) else json.dumps(value)


HEAD = ("verdict", "engine", "TensorRT", "built for", "batch min / opt / max", "convolutions", "*size", "*build time")
SHORT = 24  # characters of a cell; a longer text is a footnote


def engines_section(artifacts: Artifacts, verdicts: Mapping[str, str]) -> Section:
    """Make the section; an engine with a damaged sidecar is listed with the reason.

    Args:
        artifacts: of a recipe.
        verdicts: on each engine as it is now, by file.
    """
    manifest = read_stage(artifacts, "build")
    rows = [(badge(verdict), *_engine_cells(artifacts, name)) for name, verdict in verdicts.items()]
    why_not = read_result(manifest, Built).why_not if manifest else ""
    return section("Engines", "engines.html.j2", engines=Table(HEAD, rows, "engines"), why_not=why_not)


def _engine_cells(artifacts: Artifacts, name: str) -> tuple[str | Cell, ...]:
    short = name.removeprefix("build/")
    try:
        sidecar = read_sidecar(artifacts.path(name))
    except ProjectError as error:
        return (Cell(short, remarks=[str(error)]), *[""] * 6)
    profile = sidecar.profile
    runs_on = ", ".join(sidecar.targets) or sidecar.gpu or sidecar.runs_on or ""
    long = f"Runs on {runs_on}." if len(runs_on) > SHORT else ""
    return (
        Cell(short, remarks=[long, *map(sentence, sidecar.warnings)]),
        f"{sidecar.flavour} {sidecar.tensorrt_version}",
        "" if long else runs_on,
        f"{profile.min} / {profile.opt} / {profile.max}",
        _convolutions(sidecar),
        size(sidecar.plan_bytes),
        "" if sidecar.seconds is None else f"{sidecar.seconds:.1f} s",
    )


def _convolutions(sidecar: Sidecar) -> str:
    """The number of convolutions by type in the built engine, or by requested type where it was not loaded."""
    built = sidecar.found.convolutions if sidecar.found else {}
    requested = sidecar.asked.convolutions if sidecar.asked else {}
    numbers = ", ".join(f"{number} {kind.upper()}" for kind, number in (built or requested).items())
    return numbers if built or not numbers else f"{numbers} asked for"


def predictions_section(artifacts: Artifacts, card: ModelCard, parity: ParityReport) -> Section:
    """Make the section: some test images with the predicted class.

    Raises:
        ProjectError: ``predictions.csv`` or ``reference.npz`` is damaged.
    """
    manifest = read_stage(artifacts, "infer")
    judged = manifest is not None and manifest.inputs.get(PARITY) == digest_now(artifacts, PARITY)
    if manifest is None or not judged or not artifacts.has(PREDICTIONS):
        return section("Predictions", "no_predictions.html.j2")
    inferred = read_result(manifest, Inferred)
    served = run_name(inferred.model, inferred.backend)
    verdicts = [hop.verdict for hop in parity.hops if hop.run_name == served]
    predictions = read_predictions(artifacts.path(PREDICTIONS), card.classes)
    labels = labels_by_pixels(artifacts, card)
    return section(
        "Predictions",
        "predictions.html.j2",
        served=served,
        verdict=next((verdict for verdict in verdicts if verdict != PASS), PASS),
        others=other_inputs(artifacts, manifest.inputs, parity),
        figures=[_figure(row, image_file(artifacts, row.path), card, labels) for row in predictions],
    )


def labels_by_pixels(artifacts: Artifacts, card: ModelCard) -> dict[bytes, str | None]:
    """Return the true class of each test image by the hash of its pixels.

    It is None where an image has no label, or equal pixels have two classes.

    Raises:
        ProjectError: ``reference.npz`` is damaged, or of another model.
    """
    path = artifacts.path(REFERENCE)
    labels = read_labels(path, card, "Run the verify stage again.")
    names: dict[bytes, str | None] = {}
    for image, label in zip(each_row(path, "pixels"), labels):
        key, name = _fingerprint(image), card.classes[int(label)] if label >= 0 else None
        names[key] = name if names.get(key, name) == name else None
    return names


def _fingerprint(pixels: np.ndarray) -> bytes:
    return sha256(np.ascontiguousarray(pixels).tobytes()).digest()


def _figure(
    row: Prediction, path: Path | None, card: ModelCard, labels: Mapping[bytes, str | None]
) -> dict[str, object]:
    """The values that the template shows of an image: with its picture as a data URI, or why that is missing."""
    figure = {"file": PurePath(row.path).name, "name": row.name, "probability": row.probability, "picture": ""}
    if row.error or not row.name:
        return {**figure, "missing": row.error or "not classified"}
    if path is None or not path.is_file():
        return {**figure, "missing": "there is no such file here"}
    try:
        pixels = card.decode.pixels(path)
    except ImageError as error:
        return {**figure, "missing": str(error)}
    key = _fingerprint(pixels)
    if key not in labels:  # the file was replaced: its picture is not the one that was classified
        return {**figure, "missing": "the file is no longer a test image that was verified"}
    return {**figure, "picture": data_uri(pixels), "label": labels[key]}
