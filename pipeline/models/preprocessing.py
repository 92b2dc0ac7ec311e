"""The preprocessing of a model: from the recipe, from its backbone, or detected by running its first layers.

Arithmetic before the first convolution does not show that a model normalises its pixels itself: a Rescaling from 0..1
to -1..1, a Normalization by ImageNet's mean in 0..1 and a sum of two branches all expect pixels divided by 255.
Therefore the grey levels 0 to 255 are run through these layers, and the range of the result decides.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import DataError, ModelError, ProjectError, RecipeError
from export.preprocessing import MeanImage, PreprocessingSpec
from pipeline.artifacts.archives import read_array
from pipeline.models.original import all_layers, input_form_of, run_graph
from pipeline.recipe.backbones import BACKBONES
from pipeline.recipe.model_rules import check_model
from pipeline.recipe.schema import Model, Preprocessing

if TYPE_CHECKING:
    import keras


log = logging.getLogger(__name__)

LARGEST_MEAN = 4096  # pixels, of a mean image's longer side
_LEVELS = (0, 1, 32, 64, 96, 128, 160, 192, 224, 254, 255)
_WIDEST = 12.0  # a normalised pixel is within a few standard deviations of the mean
_NARROWEST = 0.5  # pixels that were divided by 255 twice are nearly all the same
_BENT = 0.01  # of the range: resizing and rounding deviate less than this from a straight line
_CENTRED = 40.0, 300.0  # grey levels minus a mean: at least this far on both sides of 0, and at most this wide


def preprocessing_of(config: Model) -> PreprocessingSpec:
    """Return the preprocessing that the recipe names, or that belongs to its backbone.

    Raises:
        ModelError: the recipe leaves the preprocessing of a model file open, or adds one to a backbone that normalises
            its input itself.
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
    """Return the spec of ``model.preprocessing: {channel_order, mean, scale, mean_of}``.

    Raises:
        RecipeError: not three numbers, an unreadable mean file, or a mean whose unit ``mean_of`` must name.
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
        channel_mean = (0.0, 0.0, 0.0) if image else tuple(mean.tolist())
        return PreprocessingSpec(config.channel_order, channel_mean, tuple(scale.tolist()), mean_image=image)
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


def normalised_range(model: keras.Model, where: Path, free_size: int) -> tuple[float, float] | None:
    """Compute the range of the grey levels 0 to 255 before the first layer with weights, if it is a normalised one.

    Args:
        model: as it was loaded.
        where: its file, for messages.
        free_size: height and width in pixels for a model that takes any size.

    Returns:
        The smallest and the largest value; None where the model expects normalised pixels or the range is unclear.

    Raises:
        ModelError: not an image classifier.
    """
    form = input_form_of(model, where)
    shape = (form.batch or 1, form.height or free_size, form.width or free_size, 3)
    spec = PreprocessingSpec.from_mode("none")
    try:
        # One level at a time: the first layers may combine the images of a batch.
        levels = [
            _before_the_first_weights(model, form.feed(np.full(shape, level, np.uint8), spec)) for level in _LEVELS
        ]
        return range_if_normalised(np.stack([values for values in levels if values is not None]))
    except Exception as error:  # an operation that does not run here, or no layer with weights: the recipe must say
        log.debug("what %s does to pixels cannot be told: %s", where, error)
        return None


def double_normalisation(model: keras.Model, where: Path, free_size: int, spec: PreprocessingSpec) -> tuple[str, ...]:
    """Return a warning where a model that normalises its pixels itself would get normalised ones; else nothing.

    It is not an error: a model that was trained this way has to be deployed this way.

    Args:
        model: as it was loaded.
        where: its file, for messages.
        free_size: height and width in pixels for a model that takes any size.
        spec: applied to pixels before the model.

    Raises:
        ModelError: not an image classifier.
    """
    untouched = spec.mean_image is None and set(spec.mean) == {0.0} and set(spec.scale) == {1.0}
    proven = None if untouched else normalised_range(model, where, free_size)
    if proven is None:
        return ()
    low, high = proven
    return (
        f"{where.name} normalises its input itself (0..255 become {low:.4g}..{high:.4g}), and gets pixels that "
        f"model.preprocessing ({spec.mode}) has changed before. Unless it was trained so, its answers are wrong: set "
        "model.preprocessing to none.",
    )


def range_if_normalised(values: np.ndarray | None) -> tuple[float, float] | None:
    """Return the range of the values, where it shows that grey levels 0 to 255 were the expected input; else None."""
    if values is None or not np.isfinite(values).all() or (len(values) == len(_LEVELS) and not _straight(values)):
        return None
    low, high = float(values.min()), float(values.max())
    near, wide = _CENTRED
    small = high - low >= _NARROWEST and max(-low, high) <= _WIDEST
    centred = low <= -near and high >= near and high - low <= wide
    return (low, high) if small or centred else None


def _straight(values: np.ndarray) -> bool:
    """Whether every value is a linear function of the grey level; clipped or bent values prove nothing."""
    share = (np.asarray(_LEVELS, np.float64) / 255).reshape(-1, *(1,) * (values.ndim - 1))
    line = values[:1] + (values[-1:] - values[:1]) * share
    return float(np.abs(values - line).max()) <= _BENT * float(np.ptp(values))


class _ReachedError(Exception):
    """The first operation with weights is about to run; its input is the only argument."""


def _before_the_first_weights(model: Any, inputs: np.ndarray) -> np.ndarray | None:
    """Run a model up to its first operation with weights, other than a Normalization, and return that one's input."""
    from keras import ops

    def stop(layer: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            inside = getattr(layer, "before_weights", None)  # of a TensorFlow graph
            values = args[0] if inside is None else inside(args[0])
            raise _ReachedError(np.asarray(ops.convert_to_numpy(ops.cast(values, "float32"))))

        return call

    weighted = [
        layer
        for layer in all_layers(model)
        if not hasattr(layer, "layers")
        and type(layer).__name__ != "Normalization"
        # The state of a random generator is not a weight.
        and any(weight.path.rsplit("/", 1)[-1] != "seed_generator_state" for weight in layer.weights)
    ]
    try:
        run_graph(model, ops.convert_to_tensor(inputs), {id(layer): stop(layer) for layer in weighted})
    except _ReachedError as reached:
        return np.asarray(reached.args[0])
    return None
