"""Translation of Keras 1 architectures to Keras 2. Weights need no change: their order is the same."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export.errors import ModelError
from pipeline.artifacts.files import redirect_temporary_files
from pipeline.keras_files.model_file import ModelFile

_CLASSES = {
    "Convolution2D": "Conv2D",
    "AtrousConvolution2D": "Conv2D",
    "SeparableConvolution2D": "SeparableConv2D",
}
_MERGES = {"sum": "Add", "mul": "Multiply", "ave": "Average", "max": "Maximum", "concat": "Concatenate"}
_KEYS = {
    "nb_filter": "filters",
    "output_dim": "units",
    "subsample": "strides",
    "border_mode": "padding",
    "bias": "use_bias",
    "init": "kernel_initializer",
    "atrous_rate": "dilation_rate",
    "p": "rate",
    "gamma_init": "gamma_initializer",
    "beta_init": "beta_initializer",
}
_INITIALIZERS = {"kernel_initializer": "glorot_uniform", "beta_initializer": "zeros", "gamma_initializer": "ones"}
_DROPPED = frozenset(
    {"W_regularizer", "b_regularizer", "W_constraint", "b_constraint", "activity_regularizer", "gamma_regularizer"}
    | {"beta_regularizer", "input_dim", "input_dtype", "nb_row", "nb_col", "mode", "dim_ordering", "axis"}
)


@contextmanager
def as_keras2(file: ModelFile) -> Iterator[Path]:
    """Yield the path of an HDF5 file that Keras 2 reads: the file itself, or a translated copy.

    Raises:
        ModelError: a part of a Keras 1 architecture has no counterpart.
    """
    if file.config is None or not _is_keras1(file.config):
        yield file.path
        return
    import h5py

    with redirect_temporary_files() as folder:
        copy = folder / file.path.name
        shutil.copyfile(file.path, copy)
        with h5py.File(copy, "a") as target:
            target.attrs["model_config"] = json.dumps(translate(file.config))
        yield copy


def translate(config: dict[str, Any]) -> dict[str, Any]:
    """Translate an architecture of Keras 1 to Keras 2.

    Raises:
        ModelError: channels first, or a merge that Keras 2 does not have.
    """
    inner = config["config"]
    if isinstance(inner, list):  # a Sequential
        return config | {"config": [translate_layer(layer) for layer in inner]}
    return config | {"config": inner | {"layers": [translate_layer(layer) for layer in inner["layers"]]}}


def translate_layer(layer: dict[str, Any]) -> dict[str, Any]:
    """Translate one layer, or a nested model."""
    kind, config = layer["class_name"], layer["config"]
    if kind in ("Sequential", "Model") or ("layers" in config and kind != "Merge"):
        return translate(layer)
    if config.get("dim_ordering") == "th":
        raise ModelError(
            f"Expected channels last. Received: layer {config.get('name')!r} of Keras 1 with dim_ordering 'th'. "
            "Convert the model with Keras 1 or 2 first."
        )
    new = {_KEYS.get(key, key): value for key, value in config.items() if key not in _DROPPED}
    if kind == "Merge":
        if config.get("mode") not in _MERGES:
            raise ModelError(f"Expected a merge of {', '.join(_MERGES)}. Received: {config.get('mode')!r}.")
        kind = _MERGES[config["mode"]]
        new = {"name": config["name"]} | ({"axis": config.get("concat_axis", -1)} if kind == "Concatenate" else {})
    if "nb_row" in config:
        new["kernel_size"] = [config["nb_row"], config["nb_col"]]
    if kind == "BatchNormalization":
        if config.get("mode", 0) != 0:
            raise ModelError(f"Expected BatchNormalization of mode 0. Received: mode {config['mode']}.")
        new["axis"] = config.get("axis", -1)
    # Initializers have no effect, as the weights are loaded; but Keras 2 does not know all names of Keras 1.
    new |= {key: default for key, default in _INITIALIZERS.items() if isinstance(new.get(key), str)}
    return layer | {"class_name": _CLASSES.get(kind, kind), "config": new}


def _is_keras1(tree: Any) -> bool:
    if isinstance(tree, list):
        return any(map(_is_keras1, tree))
    return isinstance(tree, dict) and (
        bool({"nb_filter", "output_dim", "border_mode", "dim_ordering"} & tree.keys())
        or tree.get("class_name") == "Merge"
        or any(map(_is_keras1, tree.values()))
    )
