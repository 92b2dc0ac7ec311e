"""Read the artifacts that a visit to a GPU needs, and foresee its steps on a machine without a GPU.

The module needs Python 3.10 and numpy alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.options import MAIN, Options, check_artifacts, refuse_missing_sources
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.steps import Estimates, PlannedStep, why_too_long
from export.errors import ProjectError
from export.metrics.distances import read_noise
from export.records import read_record
from export.tensorrt.sidecar import Precision
from export.words import count
from pipeline.artifacts.archives import parse_meta, read_arrays
from pipeline.artifacts.engines import engine_source
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.manifest import INDEX, BundleIndex, matches_manifest
from pipeline.artifacts.parity_report import read_parity
from pipeline.artifacts.paths import KERAS, ONNX, PARITY, REFERENCE, Artifacts
from pipeline.recipe.schema import VerifyThresholds
from pipeline.verification.parity import Reference


def read_reference(artifacts: Path) -> Reference:
    """Read Keras' outputs, which the verify stage wrote on another machine.

    Raises:
        ProjectError: the file is missing or invalid.
    """
    path = artifacts / REFERENCE
    try:
        arrays = read_arrays(path, ("meta", "pixels", "labels", "logits"), "Keras' answers")
        meta = parse_meta(arrays["meta"])
        pixels, labels, logits = arrays["pixels"], arrays["labels"], arrays["logits"]
        _refuse_other_arrays(pixels, labels, logits)
        if not isinstance(sha256 := meta["model_sha256"], str):
            raise ValueError(f"the model's sha256 is {sha256!r:.80}")
        return Reference(KERAS, sha256, pixels, labels, logits, read_noise(meta))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProjectError(
            f"Expected Keras' answers in {path}. Received: {error}. Run the recipe's verify stage, then bring its "
            "artifacts here: python -m pipeline bundle."
        ) from error


def as_verified(artifacts: Path) -> bool:
    """Tell whether Keras' outputs are the file that the verify stage wrote.

    Other files are accepted, for example one with fewer images to transfer, and the evidence records it.
    """
    return matches_manifest(Artifacts(artifacts), REFERENCE)


def _refuse_other_arrays(pixels: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
    """Refuse arrays that the verify stage does not write, before GPU time is spent on them."""
    images = len(pixels) if pixels.ndim == 4 else 0
    if not (
        images > 0
        and pixels.shape[3] == 3
        and pixels.dtype == np.uint8
        and labels.shape == (images,)
        and np.issubdtype(labels.dtype, np.integer)
        and logits.ndim == 2
        and len(logits) == images
        and logits.size > 0
        and np.issubdtype(logits.dtype, np.floating)
    ):
        arrays = (("pixels", pixels), ("labels", labels), ("logits", logits))
        shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays)
        raise ValueError(f"images, classes and answers that do not go together: {shapes}")


def read_thresholds(artifacts: Path) -> VerifyThresholds:
    """Read the recipe's thresholds of each precision from the verdict of its verify stage; without one the defaults.

    Raises:
        ProjectError: the verdict is damaged.
    """
    thresholds = read_parity(artifacts / PARITY).thresholds if has_verdict(artifacts) else {}
    return VerifyThresholds(**{name: limits for name, limits in thresholds.items() if name in ONNX})


def has_verdict(artifacts: Path) -> bool:
    """Tell whether the verify stage's verdict is in the folder, and with it the recipe's thresholds."""
    return (artifacts / PARITY).is_file()


def altered_files(artifacts: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Return the files that differ from the bundle's index; none where the index is missing.

    The check is for bundles unpacked with tar, which compares nothing, other than `python -m pipeline unpack`.

    Raises:
        ProjectError: the index is damaged, or a file cannot be read.
    """
    path = artifacts / INDEX
    if not path.is_file():
        return ()
    remedy = f"Unpack the bundle again, or delete {INDEX} to go on with files that are compared with nothing."
    recorded = read_record(BundleIndex, path, remedy=remedy, what="index of a bundle").files
    try:
        return tuple(
            name for name in names if name not in recorded or recorded[name].sha256 != sha256_file(artifacts / name)
        )
    except OSError as error:
        raise ProjectError(
            f"Expected to read {error.filename}. Received: {error.strerror}. Copy it again, or correct its permissions."
        ) from error


STRONG, RTX, OLDER = "TensorRT 10 and later", "TensorRT-RTX", "TensorRT 8.6"


class DryRun:
    """Foresee the steps of a visit by first estimates, without a library or a driver; no step runs.

    Attributes:
        why: name of a step to why it would be left out; "" where it would run.
    """

    def __init__(self) -> None:
        self.why: dict[str, str] = {}

    def foresee(self, plan: Plan) -> list[tuple[PlannedStep, str]]:
        """Return every step, and why it would be left out; "" where it would run."""
        steps, minutes = plan.steps(self), plan.options.minutes
        by_name, estimates = {step.name: step for step in steps}, Estimates()
        left = None if minutes is None else minutes * 60
        for step in steps:
            self.why[step.name] = step.why_not() or why_too_long(step, by_name, estimates, left)
            if left is not None and not self.why[step.name]:
                left -= step.seconds
        return [(step, self.why[step.name]) for step in steps]

    def usable(self, names: Sequence[str]) -> list[str]:
        """Return the engines that would be built."""
        return [name for name in names if not self.why[f"build {name}"]]

    def why_no_peer(self, model: Path) -> str:
        """Return why PyTorch cannot be timed; whether it is installed is only known on the GPU machine."""
        return "" if model.is_file() else f"it needs {model.parent.name}/{model.name}, which is not there"

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    look = build = build_form = compare = time = contest = check = cycle = peer = _nothing


def foresee(options: Options) -> list[str]:
    """Check the folder and return lines of text with the steps of a visit.

    Raises:
        ProjectError: the folder has nothing to measure.
    """
    check_artifacts(options)
    folder = options.artifacts
    images = len(read_reference(folder).pixels)
    read_thresholds(folder)  # refuses a damaged verdict
    strong = options.flavour == "rtx" or bool(_served(options, True, MAIN)) or not _served(options, False, MAIN)
    library = RTX if options.flavour == "rtx" else STRONG if strong else OLDER
    refuse_missing_sources(options, library, strong)
    sources = {engine_source(precision, typed) for precision in options.precisions for typed in (True, False)}
    altered = altered_files(folder, [name for name in sorted({*sources, REFERENCE}) if (folder / name).is_file()])
    compared = "as the bundle recorded them" if (folder / INDEX).is_file() else f"compared with nothing: no {INDEX}"
    compared = f"not as the bundle recorded: {', '.join(altered)}" if altered else compared
    answers = "as the verify stage wrote them" if as_verified(folder) else "not the file that the verify stage wrote"
    return [
        f"{folder.resolve()}:",
        f"  files: {compared}",
        f"  Keras' answers: {count(images, 'test image')}, {answers}",
        f"  thresholds: {'of the recipe' if has_verdict(folder) else 'the defaults, as the folder has no verdict'}",
        f"  for {STRONG}, and {RTX}: {_served_words(options, True)}",
        f"  for {OLDER}: {_served_words(options, False)}",
        *_plan_lines(options, library, strong),
    ]


def _served(options: Options, strongly_typed: bool, precisions: Sequence[Precision]) -> list[str]:
    """Return the precisions whose ONNX files for this TensorRT exist."""
    return [name for name in precisions if (options.artifacts / engine_source(name, strongly_typed)).is_file()]


def _served_words(options: Options, strongly_typed: bool) -> str:
    served = _served(options, strongly_typed, options.precisions)
    missing = [name for name in options.precisions if name not in served]
    source = "" if strongly_typed or "fp32" in missing else ", which quantize.tensorrt8: true makes"
    return f"{', '.join(served) or 'nothing'}{'; no ' + ', '.join(missing) + source if missing else ''}"


def _plan_lines(options: Options, library: str, strongly_typed: bool) -> list[str]:
    plan = Plan(options, "rtx" if library == RTX else "tensorrt", strongly_typed)
    foreseen = DryRun().foresee(plan)
    unlimited = DryRun().foresee(replace(plan, options=replace(options, minutes=None)))
    seconds = [step.seconds for step, why in unlimited if not why]
    fits = sum(not why for _, why in foreseen)
    limit = "" if options.minutes is None else f"; {fits} fit into the {options.minutes:g} of --minutes"
    made = "" if plan.forms else "none; python -m benchmarks.int8_forms makes them where the recipe was quantized"
    return [
        f"other forms of the INT8 file, to time it against: {made or ', '.join(plan.forms)}",
        f"planned for {library}, by first guesses:",
        *(
            f"  left out  {step.name}: {why}" if why else f"{step.seconds:8.0f} s  {step.name}"
            for step, why in foreseen
        ),
        f"{count(len(seconds), 'step')} in about {sum(seconds) / 60:.1f} minutes{limit}",
    ]
