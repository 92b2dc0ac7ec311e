"""Import of a finished model: load it, rewrite it to canonical form, and require what its file leaves open."""

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
from pipeline.data.decode import DecodeSpec, JpegScaling
from pipeline.data.resize import Resize
from pipeline.keras_files.facts import inference_deviations, preprocessing_inside
from pipeline.keras_files.load import load_model
from pipeline.keras_files.model_file import ModelFile, config_to_float32
from pipeline.keras_files.read import read_model_file
from pipeline.models.canonical_form import to_canonical_form
from pipeline.models.model_card import ModelCard, Output, source_of
from pipeline.models.original import input_form_of
from pipeline.models.preprocessing import double_normalisation, normalised_range, preprocessing_of
from pipeline.recipe.schema import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportedModel:
    """A finished model in canonical form, and its card."""

    model: keras.Model
    card: ModelCard


def import_model(
    config: Model,
    classes: tuple[str, ...],
    resize: Resize,
    photographs: Callable[[DecodeSpec], np.ndarray | None] = lambda decode: None,
    jpeg_scaling: JpegScaling = "none",
) -> ImportedModel:
    """Load the model of ``model.path`` and rewrite it to canonical form.

    Args:
        config: the recipe's model section.
        classes: of the data, in the order of ``model.classes`` where the recipe has it.
        resize: how images are resized to the model's input.
        photographs: returns some of the data's images, uint8 (N, height, width, 3), or None. Outputs before and after
            each rewrite are compared on them and on synthetic images. Defaults to a function that returns None.
        jpeg_scaling: see `DecodeSpec`. Defaults to "none".

    Raises:
        ModelError: unsafe, not an image classifier, or a setting that the recipe must name: ``preprocessing``,
            ``classes``, ``output``, ``allow``.
    """
    path = Path(config.path or "")
    file = read_model_file(path)
    deviations = inference_deviations(file, config.called_in_training)
    model = load_model(path, config.allow, compare=True)
    form = input_form_of(model, path)
    size = form.height or config.input_size, form.width or config.input_size
    if None not in (form.height, form.width):
        _refuse_another_size(config.input_size, size, path)
    decode = DecodeSpec(size, resize, jpeg_scaling=jpeg_scaling)
    spec = _preprocessing(config, file, model, size)
    canonical = to_canonical_form(model, path, config.output, config.input_size, spec, photographs(decode))
    changes = (*half_precision_changes(file), *canonical.changes)
    doubts = double_normalisation(model, path, config.input_size, spec)
    for line in (*deviations, *doubts):
        log.warning("%s", line)
    for change in changes:
        log.info("  %s: %s", path.name, change)
    _check_classes(canonical.model.outputs[0].shape[-1], classes, path, named=config.classes is not None)
    card = ModelCard(
        classes,
        canonical.preprocessing,
        decode,
        cast(Output, canonical.output),
        source=source_of(config),
        written_by=file.written_by,
        changes=changes,
        deviations=deviations,
        doubts=doubts,
    )
    return ImportedModel(canonical.model, card)


def half_precision_changes(file: ModelFile) -> tuple[str, ...]:
    """Return the change that loading makes to a Keras 2 file in half precision; empty for any other file."""
    if not file.legacy or file.config is None or config_to_float32(file.config) == file.config:
        return ()
    return ("its layers compute in float32, in the file in half precision, which rounds its answers to three digits",)


def _refuse_another_size(requested: int, size: tuple[int, int], path: Path) -> None:
    """Refuse a model.input_size other than the file's. The default value counts as not set."""
    square = size[0] == size[1]
    if requested != Model().input_size and not (square and requested == size[0]):
        raise ModelError(
            f"model.input_size: expected the size that {path} has, {size[0]}x{size[1]}. Received: {requested}. "
            f"Leave it out{f', or say {size[0]}' if square else ''}."
        )


def _preprocessing(config: Model, file: ModelFile, model: keras.Model, size: tuple[int, int]) -> PreprocessingSpec:
    if config.preprocessing == "auto":
        if (proven := normalised_range(model, file.path, config.input_size)) is not None:
            log.info(
                "  %s normalises its input itself (0..255 become %.4g..%.4g), so it gets pixels as they are",
                *(file.path.name, *proven),
            )
            return PreprocessingSpec.from_mode("none")
        if inside := preprocessing_inside(file.config):
            raise ModelError(
                f"model.preprocessing: expected caffe, tf, torch, unit or none, because what {file.path} does to "
                f"pixels itself ({listed(inside, separator='; ')}) does not take 0..255 to a normalised range. "
                "Received: auto. Name the preprocessing of its training images: 'unit' for x/255, 'none' for pixels "
                "as they are."
            )
    spec = preprocessing_of(config)
    image = spec.mean_image
    if image is not None and image.shape[:2] != size:
        raise ModelError(
            f"model.preprocessing.mean: expected a mean image of the model's size {size[0]}x{size[1]}. "
            f"Received: {image.shape[0]}x{image.shape[1]}."
        )
    return spec


def _check_classes(outputs: int, classes: tuple[str, ...], path: Path, *, named: bool) -> None:
    expected, source, advice = (
        ("there are names", "model.classes names", "")
        if named
        else (
            "the data has classes",
            "the data has",
            " If it has more classes than the data, name them all in model.classes.",
        )
    )
    if outputs != len(classes):
        raise ModelError(
            f"Expected a model with as many outputs as {expected}. Received: {path} with {outputs}; {source} "
            f"{len(classes)} ({listed(classes, most=8)}).{advice}"
        )
