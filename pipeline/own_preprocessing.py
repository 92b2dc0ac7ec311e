"""The preprocessing of a recipe's model: its backbone's, one of Keras' modes, or spelt out in the recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.errors import ProjectError
from export.preprocessing import MeanImage, PreprocessingSpec
from pipeline.backbones import BACKBONES
from pipeline.errors import DataError, ModelError, RecipeError
from pipeline.model_settings import check_model
from pipeline.npz_files import read_array
from pipeline.recipe import Model, Preprocessing

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
