"""The report's sections on the recipe, parity, engines and predictions.

The report's section on the recipe: what was asked, what of it differs from the defaults, and the command.

The report's section on parity: every comparison, with its numbers and its verdict.

The report's section on engines: what was built, for which machines, and whether it ran.

The report's section on predictions: some images with the class they got.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from export.errors import ImageError, ProjectError
from export.metrics.confidence import McNemar
from export.tensorrt.sidecar import Sidecar, read_sidecar
from export.words import count, sentence
from pipeline.artifacts.manifest import Manifest, read_result, read_stage
from pipeline.artifacts.parity_report import FROM_KERAS, NOT_RUN, PASS, Hop, ParityReport, allowed, not_run, run_name
from pipeline.artifacts.paths import ONNX, PARITY, PREDICTIONS, REFERENCE, Artifacts
from pipeline.artifacts.results import Built, Inferred
from pipeline.artifacts.stage_files import Prediction, image_file, read_predictions
from pipeline.models.model_card import ModelCard
from pipeline.recipe.load import SECTIONS, recipe_slice
from pipeline.recipe.schema import Recipe
from pipeline.reporting.charts import data_uri, read_labelled
from pipeline.reporting.headline import short_name
from pipeline.reporting.html import Bar, Cell, Chart, Section, Table, badge, number, section, share, size
from pipeline.reporting.validity import digest_now, other_inputs
from pipeline.terminal.command_line import ARTIFACTS, Invocation

DEFAULT_RECIPE = "digits"  # of the Makefile


def recipe_section(recipe: Recipe, invocation: Invocation, verify: Manifest | None) -> Section:
    """The section; paths and permissions, which decide no result, are left to the recipe file."""
    asked, usual = (_flat(recipe_slice(one, SECTIONS)) for one in (recipe, Recipe(recipe.name)))
    changed = [
        tuple(Cell(_shown(cell), code=True) for cell in (name, asked.get(name), usual.get(name)))
        for name in sorted(asked.keys() | usual.keys())
        if asked.get(name) != usual.get(name)
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
    """The command line for a target of the Makefile, or, where it does not know the recipe, for the same verb.

    Args:
        invocation: recipe, overrides, artifacts.
        target: such as ``run``; each that is asked for is a verb of ``python -m pipeline`` too.
        verify: the record of the verify stage: where it saw a GPU, the GPU's environment is named.
    """
    path, name = invocation.recipe_path, invocation.recipe_path.stem
    words = invocation.options
    known = path == Path("configs") / f"{name}.yaml" and shlex.quote(name) == name and invocation.artifacts == ARTIFACTS
    if not known or any("\n" in word for word in words):
        return invocation.command(target, "python")
    gpu = "GPU=1 " if verify is not None and verify.environment.get("gpu") else ""
    recipe = "" if name == DEFAULT_RECIPE else f"RECIPE={name} "
    # The shell takes the outer quotes off, make a dollar, and the shell that make starts the inner quotes.
    arguments = f"ARGS={shlex.quote(shlex.join(words).replace('$', '$$'))} " if words else ""
    return f"{gpu}{recipe}{arguments}make {target}"


def make_with(invocation: Invocation, overrides: Sequence[str], target: str, verify: Manifest | None) -> str:
    """`make` with other values of the recipe: an override that is there already is replaced, not repeated."""
    keys = {override.partition("=")[0].strip() for override in overrides}
    kept = [one for one in invocation.overrides if one.partition("=")[0].strip() not in keys]
    return make(replace(invocation, overrides=[*kept, *overrides]), target, verify)


def when(verify: Manifest | None) -> str:
    """When the verdict was given, for people; "" where its record does not say."""
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


CHANGED = (
    "Lost / gained: images that the reference names right and the candidate wrong, and the reverse; p: how likely "
    "chance alone parts them at least so far (exact McNemar test)."
)


def parity_section(parity: ParityReport) -> Section:
    """The section; its thresholds are those that the verdict was given by."""
    limits = {name: parity.thresholds[name].sqnr_db for name in ONNX if name in parity.thresholds}
    head = (
        *("verdict", "candidate", "against", "*SQNR, dB", "*agreement", "*accuracy"),
        Cell("*lost / gained", remarks=[CHANGED]),
        Cell("*rel. error", remarks=[sentence(allowed(parity.hops))]),
    )
    return section(
        "Parity",
        "parity.html.j2",
        images=max((hop.images for hop in parity.hops), default=0),
        chart=sqnr_bars([hop for hop in parity.hops if hop.kind == FROM_KERAS], limits),
        hops=Table(head, [_row(hop) for hop in parity.hops if hop.verdict != NOT_RUN], "parity"),
        apart=not_run(parity.hops),
    )


def sqnr_bars(hops: Sequence[Hop], limits: Mapping[str, float | None]) -> Chart:
    """SQNR against Keras, one row a candidate that was run, whatever came of it; the threshold as a mark.

    Args:
        hops: the ``from_keras`` hops.
        limits: smallest SQNR in dB by precision; None: not asked for.
    """
    rows = []
    for hop in hops:
        if hop.verdict != NOT_RUN:
            limit = limits.get(hop.precision)
            asked = "" if limit is None else f"asked: {limit:.4g}"
            label = f"{hop.precision.upper()} {short_name(hop.run_name)}"
            rows.append(Bar(label, _length(hop), _sqnr(hop, " dB") or "failed to run", hop.precision, limit, asked))
    return Chart("SQNR of the logits against Keras, dB (more is closer)", rows, "smallest that the recipe allows")


def _length(hop: Hop) -> float:
    if hop.sqnr_db is not None:
        return hop.sqnr_db
    return math.inf if hop.equal else math.nan


def _row(hop: Hop) -> tuple[str | Cell, ...]:
    why = hop.certainty if hop.verdict == PASS else hop.why
    note = f"{hop.precision.upper()}: {hop.note}." if hop.note else ""
    return (
        badge(hop.verdict),
        Cell(hop.run_name, remarks=[sentence(why), note]),
        hop.reference,
        _sqnr(hop),
        share(hop.top1_agreement),
        share(hop.accuracy_candidate),
        _changed(hop.mcnemar),
        number(hop.relative_error, ".1e"),
    )


def _sqnr(hop: Hop, unit: str = "") -> str:
    if hop.sqnr_db is not None:
        return f"{hop.sqnr_db:.1f}{unit}" if abs(hop.sqnr_db) < 1e12 else f"{hop.sqnr_db:.3g}{unit}"
    return "" if not hop.compared else "equal" if hop.equal else "NaN or infinite"


def _changed(mcnemar: McNemar | None) -> str:
    """Right answers lost and gained; empty where none were compared."""
    return "" if mcnemar is None else f"{mcnemar.losses} / {mcnemar.gains}, p {mcnemar.p_value:.2g}"


HEAD = ("verdict", "engine", "TensorRT", "built for", "batch min / opt / max", "convolutions", "*size", "*build time")
SHORT = 24  # characters of a cell; what is longer is a footnote


def engines_section(artifacts: Artifacts, verdicts: Mapping[str, str]) -> Section:
    """The engines that are there; one whose sidecar is damaged is listed with the reason.

    Args:
        artifacts: of a recipe.
        verdicts: on each engine as it is now, by file.
    """
    manifest = read_stage(artifacts, "build")
    rows = [(badge(verdict), *_facts(artifacts, name)) for name, verdict in verdicts.items()]
    why_not = read_result(manifest, Built).why_not if manifest else ""
    return section("Engines", "engines.html.j2", engines=Table(HEAD, rows, "engines"), why_not=why_not)


def _facts(artifacts: Artifacts, name: str) -> tuple[str | Cell, ...]:
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
    """How many run in which type, or, where the engine was not loaded, how many were asked for in which."""
    found = sidecar.found.convolutions if sidecar.found else {}
    asked = sidecar.asked.convolutions if sidecar.asked else {}
    listed = ", ".join(f"{number} {kind.upper()}" for kind, number in (found or asked).items())
    return listed if found or not listed else f"{listed} asked for"


@dataclass(frozen=True)
class Figure:
    """An image of the page with what was answered.

    Attributes:
        file: its name.
        name: of the class that it got.
        probability: of that class.
        picture: as a data URI; "": it is not shown.
        missing: why.
        label: its right class; None: not known.
    """

    file: str
    name: str
    probability: float
    picture: str = ""
    missing: str = ""
    label: str | None = None


def predictions_section(artifacts: Artifacts, card: ModelCard, parity: ParityReport) -> Section:
    """The section.

    Raises:
        ProjectError: ``predictions.csv`` or ``reference.npz`` is damaged.
    """
    manifest = read_stage(artifacts, "infer")
    judged = manifest is not None and manifest.inputs.get(PARITY) == digest_now(artifacts, PARITY)
    if manifest is None or not judged or not artifacts.has(PREDICTIONS):
        return section("Predictions", "no_predictions.html.j2")
    answered = read_result(manifest, Inferred)
    served = run_name(answered.model, answered.backend)
    hops = [hop for hop in parity.hops if hop.run_name == served]
    predictions = read_predictions(artifacts.path(PREDICTIONS), card.classes)
    truth = labels_by_pixels(artifacts, card)
    return section(
        "Predictions",
        "predictions.html.j2",
        served=served,
        verdict=next((hop.verdict for hop in hops if hop.verdict != PASS), PASS),
        others=other_inputs(artifacts, manifest.inputs, parity),
        figures=[_figure(one, image_file(artifacts, one.path), card, truth) for one in predictions],
    )


def labels_by_pixels(artifacts: Artifacts, card: ModelCard) -> dict[bytes, str | None]:
    """The right class of each test image, by what its pixels hash to; None where equal pixels have two classes.

    Raises:
        ProjectError: ``reference.npz`` is damaged, or of another model.
    """
    pixels, labels = read_labelled(artifacts.path(REFERENCE), card, "Run the verify stage again.")
    found: dict[bytes, str | None] = {}
    for image, label in zip(pixels, labels):
        name = card.classes[int(label)]
        key = _fingerprint(image)
        found[key] = name if found.get(key, name) == name else None
    return found


def _fingerprint(pixels: np.ndarray) -> bytes:
    return sha256(np.ascontiguousarray(pixels).tobytes()).digest()


def _figure(one: Prediction, path: Path | None, card: ModelCard, truth: Mapping[bytes, str | None]) -> Figure:
    figure = Figure(PurePath(one.path).name, one.name, one.probability)
    if one.error or not one.name:
        return replace(figure, missing=one.error or "not classified")
    if path is None or not path.is_file():
        return replace(figure, missing="there is no such file here")
    try:
        pixels = card.decode.pixels(path)
    except ImageError as error:
        return replace(figure, missing=str(error))
    key = _fingerprint(pixels)
    if key not in truth:  # whatever it is, it is not what was classified: it is not shown
        return replace(figure, missing="the file is no longer a test image that was verified")
    return replace(figure, picture=data_uri(pixels), label=truth[key])
