"""The preprocessing of a model: by its recipe or backbone, or found inside it by running its first layers.

The preprocessing of a recipe's model: its backbone's, one of Keras' modes, or spelt out in the recipe.

Whether a model normalises its pixels itself, found by running its first layers.

Arithmetic before the first convolution proves nothing: a Rescaling from 0..1 to -1..1, a Normalization by ImageNet's
mean in 0..1, a sum of two branches, all want pixels that were divided by 255 before. What counts is where the grey
levels 0 to 255 end up.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import DataError, ModelError, ProjectError, RecipeError
from export.preprocessing import MeanImage, PreprocessingSpec
from export.words import listed
from pipeline.artifacts.archives import read_array
from pipeline.models.original import form_of, run_graph
from pipeline.recipe.backbones import BACKBONES
from pipeline.recipe.model_rules import check_model
from pipeline.recipe.schema import Model, Preprocessing

if TYPE_CHECKING:
    import keras


LARGEST_MEAN = 4096  # pixels a side


def preprocessing_of(config: Model) -> PreprocessingSpec:
    """The preprocessing that the recipe names, or that belongs to its backbone.

    Raises:
        ModelError: a model file is deployed and the recipe leaves its preprocessing open; a backbone that normalises
            inside would get pixels that are normalised already.
    """
    check_model(config)
    if config.path is None and BACKBONES[config.backbone].normalises_inside:
        return PreprocessingSpec.from_mode("none")
    if isinstance(config.preprocessing, Preprocessing):
        return own_preprocessing(config.preprocessing)
    if config.preprocessing != "auto":
        return PreprocessingSpec.from_mode(config.preprocessing)
    if config.path is not None:
        raise ModelError(
            "model.preprocessing: expected caffe, tf, torch, unit or none, because a model file does not say how its "
            "training images were prepared. Received: auto. Use 'none' if the model normalises inside (a Rescaling "
            "layer), 'unit' for x/255, 'caffe' for keras.applications' ResNet50, 'tf' for its V2 models."
        )
    return PreprocessingSpec.from_mode(BACKBONES[config.backbone].preprocessing)


def own_preprocessing(config: Preprocessing) -> PreprocessingSpec:
    """The spec of ``model.preprocessing: {channel_order, mean, scale, mean_of}``.

    Raises:
        RecipeError: not three numbers, a mean file that is none, or a mean whose unit must be told.
    """
    scale = _three((config.scale,) * 3 if isinstance(config.scale, float) else config.scale, "scale")
    if not np.all(scale):
        raise RecipeError(f"model.preprocessing.scale: expected numbers other than 0. Received: {config.scale}.")
    mean = _read_mean(Path(config.mean)) if isinstance(config.mean, str) else _three(config.mean, "mean")
    if config.mean_of == "scaled":
        mean = mean / scale  # x * scale - mean = (x - mean / scale) * scale
    elif np.any(mean) and np.abs(mean).max() <= 1 and np.abs(scale).max() < 0.1:
        raise RecipeError(
            "model.preprocessing.mean_of: expected to be told, because all values of the mean are below 1 and pixels "
            "go from 0 to 255. Say mean_of: scaled if the mean is of pixels after the scale "
            "(pixels * scale - mean), or give the mean in grey levels."
        )
    try:
        image = MeanImage.from_array(mean) if mean.ndim == 3 else None
        grey_levels = (0.0, 0.0, 0.0) if image else tuple(mean.tolist())
        return PreprocessingSpec(config.channel_order, grey_levels, tuple(scale.tolist()), mean_image=image)
    except ProjectError as error:
        raise RecipeError(f"model.preprocessing: {error}") from error


def _three(values: tuple[float, ...], key: str) -> np.ndarray:
    if len(values) != 3:
        raise RecipeError(f"model.preprocessing.{key}: expected three numbers, one a channel. Received: {values}.")
    return np.asarray(values, dtype=np.float64)


def _read_mean(path: Path) -> np.ndarray:
    try:
        values = read_array(path, most=3 * LARGEST_MEAN**2)
    except (OSError, DataError) as error:
        raise RecipeError(
            f"model.preprocessing.mean: expected a .npy file of numbers. Received: {path}: {error}."
        ) from error
    shape = values.shape
    if shape != (3,) and not (len(shape) == 3 and shape[2] == 3 and max(shape) <= LARGEST_MEAN):
        raise RecipeError(
            f"model.preprocessing.mean: expected an array of shape (3,) or (height, width, 3). "
            f"Received: {path}, {shape}."
        )
    return np.asarray(values, dtype=np.float64)


log = logging.getLogger(__name__)

_LEVELS = (0, 1, 32, 64, 96, 128, 160, 192, 224, 254, 255)
_WIDEST = 12.0  # a normalised pixel is a few standard deviations from the mean at most
_NARROWEST = 0.5  # and pixels that were divided by 255 twice are nearly all the same
_BENT = 0.01  # of the range: resizing and rounding leave a line less straight than this
_CENTRED = 40.0, 300.0  # grey levels less a mean: this far to both sides of 0 at least, and this wide at most


def normalised_range(model: keras.Model, where: Path, free_size: int) -> tuple[float, float] | None:
    """What the grey levels 0 to 255 become before the first layer with weights, if that is a normalised range.

    Args:
        model: as it was loaded.
        where: its file, for messages.
        free_size: height and width for a model that takes any size.

    Returns:
        The smallest and the largest value, or None: the model takes pixels that somebody else has to normalise, or
        it can't be told.

    Raises:
        ModelError: it is no image classifier.
    """
    form = form_of(model, where)
    height, width = form.height or free_size, form.width or free_size
    spec = PreprocessingSpec.from_mode("none")
    try:
        found = []
        for level in _LEVELS:  # one at a time: what is stacked in front of the layers is stacked for each
            pixels = np.full((form.batch or 1, height, width, 3), level, np.uint8)
            found.append(_before_the_first_weights(model, form.feed(pixels, spec)))
        return judge_range(np.stack([values for values in found if values is not None]) if found else None)
    except Exception as error:  # an operation that does not run here, or nothing with weights at all: ask
        log.debug("what %s does to pixels cannot be told: %s", where, error)
        return None


def normalised_twice(model: keras.Model, where: Path, free_size: int, spec: PreprocessingSpec) -> tuple[str, ...]:
    """A sentence where a model that normalises its pixels itself is to get normalised ones, else none.

    It is no error: who trained the model so has to deploy it so.

    Args:
        model: as it was loaded.
        where: its file, for messages.
        free_size: height and width for a model that takes any size.
        spec: what is done to pixels before the model.

    Raises:
        ModelError: it is no image classifier.
    """
    untouched = spec.mean_image is None and set(spec.mean) == {0.0} and set(spec.scale) == {1.0}
    proven = None if untouched else normalised_range(model, where, free_size)
    if proven is None:
        return ()
    low, high = proven
    return (
        f"{where.name} normalises its input itself (0..255 become {low:.4g}..{high:.4g}), and gets pixels that "
        f"model.preprocessing ({spec.mode}) has changed before. Unless it was trained so, its answers are worth "
        "nothing: set model.preprocessing to none.",
    )


def judge_range(values: np.ndarray | None) -> tuple[float, float] | None:
    """The range of some values of the grey levels 0 to 255, where it proves that they were meant; None elsewhere."""
    if values is None or not np.isfinite(values).all():
        return None
    if len(values) == len(_LEVELS) and not _straight(values):
        return None
    low, high = float(values.min()), float(values.max())
    near, wide = _CENTRED
    small = high - low >= _NARROWEST and max(-low, high) <= _WIDEST
    centred = low <= -near and high >= near and high - low <= wide
    return (low, high) if small or centred else None


def _straight(values: np.ndarray) -> bool:
    """Whether every value rises with the grey level as a line does: what is cut off or bent there says nothing."""
    share = (np.asarray(_LEVELS, np.float64) / 255).reshape(-1, *(1,) * (values.ndim - 1))
    line = values[:1] + (values[-1:] - values[:1]) * share
    return float(np.abs(values - line).max()) <= _BENT * float(np.ptp(values))


class _ReachedError(Exception):
    """The first operation with weights is about to run on these values."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.values = values


def _before_the_first_weights(model: Any, given: np.ndarray) -> np.ndarray | None:
    """Runs a model until it meets an operation with weights other than a Normalization's."""
    from keras import ops

    def stop(layer: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            inside = getattr(layer, "before_weights", None)  # of a TensorFlow graph
            values = args[0] if inside is None else inside(args[0])
            raise _ReachedError(np.asarray(ops.convert_to_numpy(ops.cast(values, "float32"))))

        return call

    try:
        run_graph(model, ops.convert_to_tensor(given), {id(layer): stop(layer) for layer in _with_weights(model)})
    except _ReachedError as reached:
        return reached.values
    return None


def _with_weights(model: Any) -> list[Any]:
    found = []
    for layer in model.layers:
        if hasattr(layer, "layers"):
            found += _with_weights(layer)
        elif layer.weights and type(layer).__name__ not in ("Normalization",) and not _only_seeds(layer):
            found.append(layer)
    return found


def _only_seeds(layer: Any) -> bool:
    """Whether a layer's weights are the state of a random generator."""
    return all(weight.path.rsplit("/", 1)[-1] == "seed_generator_state" for weight in layer.weights)


def refuse_unproven(where: Path, inside: tuple[str, ...]) -> None:
    """Ask for the preprocessing of a model with arithmetic inside that does not prove one.

    Raises:
        ModelError: always.
    """
    raise ModelError(
        f"model.preprocessing: expected caffe, tf, torch, unit or none, because what {where} does to pixels itself "
        f"({listed(inside, separator='; ')}) does not take 0..255 to a normalised range. Received: auto. Say what its "
        "training "
        "images went through before: 'unit' for x/255, 'none' for pixels as they are."
    )
