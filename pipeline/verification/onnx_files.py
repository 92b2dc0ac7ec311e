"""Compare the recipe's Keras model with ONNX files that this project did not export. Nothing of it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from export.tensorrt.sidecar import Precision
from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.parity_report import Hop, ParityReport, overall_verdict
from pipeline.artifacts.paths import KERAS
from pipeline.models.model_card import ModelCard
from pipeline.recipe.schema import Recipe
from pipeline.runners.base import Runner
from pipeline.runners.foreign import ForeignRunner, log_softmax, precision_in
from pipeline.runners.keras import load_logits_model
from pipeline.terminal.command_line import general_command
from pipeline.terminal.console import progress_bar
from pipeline.verification.culprits import culprits
from pipeline.verification.evaluate import evaluate
from pipeline.verification.explain import explain
from pipeline.verification.explain.case import Case
from pipeline.verification.explain.exceeding import IMAGES as FEW
from pipeline.verification.explain.exceeding import find_extreme
from pipeline.verification.named_images import NamedImages
from pipeline.verification.overflow import Extreme
from pipeline.verification.parity import Answer, Candidate, Reference, judge
from pipeline.verification.verify import run_keras

if TYPE_CHECKING:
    import keras

UNKNOWN_REMEDY = (
    f"Export the model by this recipe ({general_command('export')}), which is checked against Keras, and look at where "
    "the graphs differ; layers are compared in the recipe's own files alone."
)


@dataclass(frozen=True, eq=False)
class Compared:
    """What was compared of one file.

    Attributes:
        candidate: the file.
        answer: what it gave.
        reference: what Keras gave, in the form that the file gives.
        report: the verdict on it.
        hints: causes of its failures, as far as they can be computed.
    """

    candidate: Candidate
    answer: Answer
    reference: Reference
    report: ParityReport
    hints: tuple[Hint, ...]


def compare_onnx_files(
    files: Sequence[Path],
    keras_model: Path,
    card: ModelCard,
    settings: Recipe,
    images: NamedImages,
    labels: np.ndarray,
    precision: Precision | None = None,
) -> list[Compared]:
    """Run Keras once, and each file, and judge them by the recipe's thresholds.

    Args:
        files: ONNX files.
        keras_model: the Keras model.
        card: its card, which has the classes and the preprocessing.
        settings: the recipe, for `verify` and `model.allow`.
        images: to compare on.
        labels: int64 (N,), class of each image; -1 where it has none.
        precision: of the files, which decides the thresholds. Defaults to None: what each file says.

    Raises:
        ProjectError: a file is no ONNX file, or no classifier of these images and classes (`UnfitError`), or Keras
            gives no finite logits.
    """
    precisions = {file: precision or precision_in(file) for file in dict.fromkeys(files)}
    logits, noise = run_keras(keras_model, card, settings, images.pixels)
    reference = Reference(
        KERAS, sha256_file(keras_model), images.pixels, labels, logits, noise=noise, names=images.names
    )
    load = partial(load_logits_model, keras_model, card.output, settings.model.allow)
    return [_compare(file, found, card, settings, reference, load) for file, found in precisions.items()]


def joint_report(compared: Sequence[Compared]) -> ParityReport:
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
) -> Compared:
    notes: tuple[str, ...] = ()
    extreme: Extreme | None = None

    def look(runner: Runner, _: str) -> None:
        nonlocal notes, extreme, reference, load
        foreign = cast(ForeignRunner, runner)
        extreme = find_extreme(file, foreign.feed(foreign.inputs(reference.pixels[:FEW])))
        notes = foreign.notes
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
        answer = evaluate(candidate, reference.pixels, settings.verify.batch_size, bar.update, look, reference.noise)
    candidate = replace(candidate, note="; ".join(notes))
    answer = replace(answer, extreme=extreme)
    answers = {candidate.run_name: answer}
    report = judge([candidate], answers, reference, settings.verify.thresholds)
    case = Case([candidate], answers, reference, card, {candidate.name: file}, load, own=False)
    hints = explain(culprits(report.hops), case)
    return Compared(candidate, answer, reference, report, tuple(map(_without_layers, hints)))


def _without_layers(hint: Hint) -> Hint:
    """Advise no comparison of layers, which is one of the recipe's own files."""
    return replace(hint, remedy=UNKNOWN_REMEDY) if hint.cause == "unknown" else hint


def _load_with_logarithms(load: Callable[[], keras.Model]) -> keras.Model:
    """Load Keras' model with the logarithms of its probabilities as output, for a file that gives probabilities."""
    import keras

    model = load()
    return keras.Model(model.inputs, keras.ops.log_softmax(model.outputs[0]))
