"""Compare the recipe's Keras model with ONNX files that this project did not export. Nothing of it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from export.errors import ProjectError, RunnerError
from export.preprocessing import PreprocessingSpec
from export.tensorrt.sidecar import Precision
from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.layer_report import LayerRun
from pipeline.artifacts.parity_report import Hop, ParityReport, overall_verdict
from pipeline.artifacts.paths import KERAS
from pipeline.models.model_card import ModelCard
from pipeline.recipe.schema import Recipe
from pipeline.runners.base import Runner
from pipeline.runners.foreign import ForeignRunner, log_softmax, read_onnx_file
from pipeline.runners.keras import load_logits_model
from pipeline.terminal.command_line import general_command
from pipeline.terminal.console import progress_bar
from pipeline.verification.checks.overflow import Extreme
from pipeline.verification.culprits import culprits
from pipeline.verification.evaluate import evaluate
from pipeline.verification.explain.case import Case
from pipeline.verification.explain.causes import explain
from pipeline.verification.explain.exceeding import IMAGES as FEW
from pipeline.verification.explain.exceeding import find_extreme
from pipeline.verification.outside.named_images import NamedImages
from pipeline.verification.parity import Answer, Candidate, Reference, judge
from pipeline.verification.verify import run_keras

if TYPE_CHECKING:
    import keras
    import onnx

UNKNOWN_REMEDY = (
    "Compare the layers: run this command with --layers. Or export the model by this recipe "
    f"({general_command('export')}), which is checked against Keras, and look at where the graphs differ."
)


@dataclass(frozen=True, eq=False)
class ComparedFile:
    """What was compared of one file.

    Attributes:
        candidate: the file.
        answer: what it gave.
        reference: what Keras gave, in the form that the file gives.
        report: the verdict on it.
        hints: causes of its failures, as far as they can be computed.
        layers: every Keras layer's output against its tensor; None where that was not asked for.
    """

    candidate: Candidate
    answer: Answer
    reference: Reference
    report: ParityReport
    hints: tuple[Hint, ...]
    layers: LayerRun | None


def compare_onnx_files(
    files: Sequence[Path],
    keras_model: Path,
    card: ModelCard,
    settings: Recipe,
    images: NamedImages,
    labels: np.ndarray,
    precision: Precision | None = None,
    *,
    layers: bool = False,
) -> list[ComparedFile]:
    """Run Keras once, and each file, and judge them by the recipe's thresholds.

    Args:
        files: ONNX files.
        keras_model: the Keras model.
        card: its card, which has the classes and the preprocessing.
        settings: the recipe, for `verify` and `model.allow`.
        images: to compare on.
        labels: int64 (N,), class of each image; -1 where it has none.
        precision: of the files, which decides the thresholds. Defaults to None: what each file says.
        layers: whether each file's layers are compared too. Defaults to False.

    Raises:
        ProjectError: a file is no ONNX file, or no classifier of these images and classes (`UnfitError`), or Keras
            gives no finite logits.
    """
    precisions = {file: precision or read_onnx_file(file).precision for file in dict.fromkeys(files)}
    logits, noise = run_keras(keras_model, card, settings, images.pixels)
    reference = Reference(
        KERAS, sha256_file(keras_model), images.pixels, labels, logits, noise=noise, names=images.names
    )
    load = partial(load_logits_model, keras_model, card.output, settings.model.allow)
    return [_compare(file, found, card, settings, reference, load, layers) for file, found in precisions.items()]


def joint_report(compared: Sequence[ComparedFile]) -> ParityReport:
    """Return one verdict over several files."""
    reports = [one.report for one in compared]
    hops: tuple[Hop, ...] = tuple(hop for report in reports for hop in report.hops)
    return replace(
        reports[0],
        verdict=overall_verdict(hops),
        hops=hops,
        subjects={name: digest for report in reports for name, digest in report.subjects.items()},
        warnings=tuple(dict.fromkeys(warning for report in reports for warning in report.warnings)),
    )


def _compare(
    file: Path,
    precision: Precision,
    card: ModelCard,
    settings: Recipe,
    reference: Reference,
    load: Callable[[], keras.Model],
    layers: bool,
) -> ComparedFile:
    foreign: ForeignRunner | None = None
    extreme: Extreme | None = None

    def look(runner: Runner, _: str) -> None:
        nonlocal foreign, extreme, reference, load
        foreign = cast(ForeignRunner, runner)
        extreme = find_extreme(file, foreign.feed(foreign.inputs(reference.pixels[:FEW])))
        if foreign.log_floor is not None:
            reference = replace(reference, logits=log_softmax(reference.logits, foreign.log_floor))
            load = partial(_load_with_logarithms, load)

    opened = partial(
        ForeignRunner,
        file,
        card.size,
        classes=len(card.classes),
        preprocess=card.preprocessing.apply,
        precision=precision,
    )
    candidate = Candidate(str(file), "onnxruntime", precision, sha256_file(file), None, opened)
    with progress_bar(total=len(reference.pixels), desc=f"  {file.name}", unit="img") as bar:
        answer = evaluate(
            candidate, reference.pixels, settings.verify.batch_size, bar.update, look, reference.noise, reference.logits
        )
    candidate = replace(candidate, note="; ".join(foreign.notes) if foreign is not None else "")
    answer = replace(answer, extreme=extreme)
    answers = {candidate.run_name: answer}
    report = judge([candidate], answers, reference, settings.verify.thresholds)
    read = partial(_read, runner=foreign, preprocessing=card.preprocessing)
    case = Case([candidate], answers, reference, card, {candidate.name: file}, load, read=read, own=False)
    hints = tuple(map(_for_others, explain(culprits(report.hops), case)))
    compared = _compare_layers(case, file, precision, settings) if layers and answer.logits is not None else None
    return ComparedFile(candidate, answer, reference, report, hints, compared)


def _read(path: Path, *, runner: ForeignRunner | None, preprocessing: PreprocessingSpec) -> onnx.ModelProto:
    """Read a file in the form of this project's own."""
    from pipeline.verification.layers.foreign import read_foreign

    if runner is None:
        raise RunnerError(f"Expected a file that opens. Received: {path}, which does not.")
    return read_foreign(path, runner, preprocessing)


def _compare_layers(case: Case, file: Path, precision: Precision, settings: Recipe) -> LayerRun:
    """Compare the layers of a file with Keras'."""
    from pipeline.verification.layers.compare_files import compare_file
    from pipeline.verification.layers.keras_layers import KerasLayers
    from pipeline.verification.layers.subject import Subject

    if case.model is None:
        raise ProjectError("Expected Keras, whose layers are compared. Received: it is not installed here.")
    subject = Subject(str(file), precision, case.graph(file, precision))
    pixels = case.reference.pixels[: max(settings.verify.layer_images, subject.batch or 1)]
    return compare_file(KerasLayers(case.model, case.card.preprocessing), subject, pixels, None)[0]


def _for_others(hint: Hint) -> Hint:
    """Advise nothing that works on the recipe's own files alone."""
    return replace(hint, remedy=UNKNOWN_REMEDY) if hint.cause == "unknown" else hint


def _load_with_logarithms(load: Callable[[], keras.Model]) -> keras.Model:
    """Load Keras' model with the logarithms of its probabilities as output, for a file that gives probabilities."""
    import keras

    model = load()
    return keras.Model(model.inputs, keras.ops.log_softmax(model.outputs[0]))
