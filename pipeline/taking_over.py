"""Takes over a finished model: loads it, brings it into the chain's form, asks for what its file leaves open."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from export.errors import ExportError
from export.logits import logits_model
from export.preprocessing import PreprocessingSpec
from pipeline.adopting import Adopted, adopt
from pipeline.card import ModelCard, Output, source_of
from pipeline.decode_spec import DecodeSpec
from pipeline.errors import ModelError
from pipeline.loading import load_model
from pipeline.model_facts import normalises_inside, preprocessing_inside
from pipeline.model_file import ModelFile, read_model_file
from pipeline.models import preprocessing_of
from pipeline.preprocess import Resize
from pipeline.recipe import Model
from pipeline.training_mode import taken_at_inference

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """A finished model as the chain takes it."""

    model: keras.Model
    card: ModelCard


def take_over(config: Model, classes: tuple[str, ...], resize: Resize) -> Taken:
    """Load the model of ``model.path`` and bring it into the form that every later stage takes.

    Args:
        config: the recipe's model section.
        classes: of the data, in the order of ``model.classes`` where the recipe has it.
        resize: how pictures come to the model's size.

    Raises:
        ModelError: unsafe, not an image classifier, or something must be told by name: ``preprocessing``,
            ``classes``, ``output``, ``allow``, ``called_in_training``.
    """
    path = Path(config.path or "")
    file = read_model_file(path)
    deviations = taken_at_inference(file, config.called_in_training)
    model = load_model(path, config.allow, compare=True)
    adopted = adopt(model, path, config.output, config.input_size)
    _check_answers(adopted, path)
    _check_end(adopted, path)
    for deviation in deviations:
        log.warning("%s", deviation)
    for change in adopted.changes:
        log.info("  %s: %s", path.name, change)
    _, height, width, _ = adopted.model.inputs[0].shape
    spec = _preprocessing(config, file, (height, width))
    _check_classes(adopted.model.outputs[0].shape[-1], classes, path, named=config.classes is not None)
    decode = DecodeSpec((height, width), resize)
    output = cast(Output, adopted.output)
    card = ModelCard(
        classes,
        spec,
        decode,
        output,
        source=source_of(config),
        written_by=file.written_by,
        changes=adopted.changes,
        deviations=deviations,
    )
    return Taken(adopted.model, card)


def _preprocessing(config: Model, file: ModelFile, size: tuple[int, int]) -> PreprocessingSpec:
    inside = preprocessing_inside(file.config)
    if config.preprocessing == "auto" and normalises_inside(file.config):
        log.info(
            "  %s normalises its input itself (%s), so it gets pixels as they are", file.path.name, "; ".join(inside)
        )
        return PreprocessingSpec.from_mode("none")
    spec = preprocessing_of(config)
    image = spec.mean_image
    if image is not None and image.shape[:2] != size:
        raise ModelError(
            f"model.preprocessing.mean: expected a mean image of the model's size {size[0]}x{size[1]}. "
            f"Received: {image.shape[0]}x{image.shape[1]}."
        )
    return spec


def _check_classes(outputs: int, classes: tuple[str, ...], path: Path, *, named: bool) -> None:
    if outputs == len(classes):
        return
    listed = ", ".join(classes[:8]) + (" ..." if len(classes) > 8 else "")
    source = "model.classes names" if named else "the data has"
    advice = "" if named else " If it knows more classes than the data shows, name them all in model.classes."
    raise ModelError(
        f"Expected a model with as many outputs as {'there are names' if named else 'the data has classes'}. "
        f"Received: {path} with {outputs}; {source} {len(classes)} ({listed}).{advice}"
    )


def _check_end(adopted: Adopted, path: Path) -> None:
    """The export finds the logits; ask for what it will miss now, by the name of the recipe's key."""
    try:
        logits_model(adopted.model, adopted.output)
    except ExportError as error:
        raise ModelError(f"model.output: {path}: {error}") from error


def _check_answers(adopted: Adopted, path: Path) -> None:
    """A model whose answers are not finite is broken; say so now, not three stages later."""
    _, height, width, _ = adopted.model.inputs[0].shape
    images = np.random.default_rng(0).uniform(0, 255, (2, height, width, 3)).astype(np.float32)
    answers = np.asarray(adopted.model(images, training=False))
    if not np.isfinite(answers).all():
        raise ModelError(f"Expected finite answers. Received: NaN or infinity from {path}; its weights are broken.")
