"""Takes over a finished model: loads it, brings it into the chain's form, asks for what its file leaves open."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import keras
import numpy as np

from export.errors import ModelError
from export.preprocessing import PreprocessingSpec
from export.words import listed
from pipeline.data.decode import DecodeSpec, Resize
from pipeline.keras_files.facts import preprocessing_inside, taken_at_inference
from pipeline.keras_files.load import load_model
from pipeline.keras_files.model_file import ModelFile, in_single
from pipeline.keras_files.read import read_model_file
from pipeline.models.canonical_form import to_canonical_form
from pipeline.models.model_card import ModelCard, Output, source_of
from pipeline.models.original import form_of
from pipeline.models.preprocessing import normalised_range, normalised_twice, preprocessing_of, refuse_unproven
from pipeline.recipe.schema import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportedModel:
    """A finished model as the chain takes it."""

    model: keras.Model
    card: ModelCard


def import_model(
    config: Model,
    classes: tuple[str, ...],
    resize: Resize,
    photographs: Callable[[DecodeSpec], np.ndarray | None] = lambda decode: None,
) -> ImportedModel:
    """Load the model of ``model.path`` and bring it into the form that every later stage takes.

    Args:
        config: the recipe's model section.
        classes: of the data, in the order of ``model.classes`` where the recipe has it.
        resize: how pictures come to the model's size.
        photographs: gives some of the data's pictures, uint8 (N, height, width, 3), or None: answers before and
            after each step are compared on them, besides made pictures. Defaults to none.

    Raises:
        ModelError: unsafe, not an image classifier, or something must be told by name: ``preprocessing``,
            ``classes``, ``output``, ``allow``.
    """
    path = Path(config.path or "")
    file = read_model_file(path)
    deviations = taken_at_inference(file, config.called_in_training)
    model = load_model(path, config.allow, compare=True)
    form = form_of(model, path)
    size = form.height or config.input_size, form.width or config.input_size
    if None not in (form.height, form.width):
        _refuse_another_size(config.input_size, size, path)
    decode = DecodeSpec(size, resize)
    spec = _preprocessing(config, file, model, size)
    adopted = to_canonical_form(model, path, config.output, config.input_size, spec, photographs(decode))
    changes = (*became_single(file), *adopted.changes)
    doubts = normalised_twice(model, path, config.input_size, spec)
    for line in (*deviations, *doubts):
        log.warning("%s", line)
    for change in changes:
        log.info("  %s: %s", path.name, change)
    _check_classes(adopted.model.outputs[0].shape[-1], classes, path, named=config.classes is not None)
    card = ModelCard(
        classes,
        adopted.preprocessing,
        decode,
        cast(Output, adopted.output),
        source=source_of(config),
        written_by=file.written_by,
        changes=changes,
        deviations=deviations,
        doubts=doubts,
    )
    return ImportedModel(adopted.model, card)


def became_single(file: ModelFile) -> tuple[str, ...]:
    """What is said of a file of Keras 2 whose layers compute in half precision; empty for any other."""
    if not file.legacy or file.config is None or in_single(file.config) == file.config:
        return ()
    return ("its layers compute in float32, in the file in half precision, which rounds its answers to three digits",)


def _refuse_another_size(asked: int, size: tuple[int, int], path: Path) -> None:
    """Refuse a model.input_size that the file does not have; the default is what nobody asked for."""
    if asked not in (Model().input_size, *(size[:1] if size[0] == size[1] else ())):
        fitting = f", or say {size[0]}" if size[0] == size[1] else ""
        raise ModelError(
            f"model.input_size: expected the size that {path} has, {size[0]}x{size[1]}. Received: {asked}. "
            f"Leave it out{fitting}."
        )


def _preprocessing(config: Model, file: ModelFile, model: keras.Model, size: tuple[int, int]) -> PreprocessingSpec:
    if config.preprocessing == "auto":
        inside = preprocessing_inside(file.config)
        proven = normalised_range(model, file.path, config.input_size)
        if proven is not None:
            log.info(
                "  %s normalises its input itself (0..255 become %.4g..%.4g), so it gets pixels as they are",
                *(file.path.name, *proven),
            )
            return PreprocessingSpec.from_mode("none")
        if inside:
            refuse_unproven(file.path, inside)
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
    source = "model.classes names" if named else "the data has"
    advice = "" if named else " If it knows more classes than the data shows, name them all in model.classes."
    raise ModelError(
        f"Expected a model with as many outputs as {'there are names' if named else 'the data has classes'}. "
        f"Received: {path} with {outputs}; {source} {len(classes)} ({listed(classes, most=8)}).{advice}"
    )
