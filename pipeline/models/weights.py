"""Loading of weights into a backbone or a whole classifier: ImageNet's, or a file of Keras 1, 2 or 3."""

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from export.errors import ModelError
from export.files import digest_of
from export.records import parse_json
from export.words import listed
from pipeline.artifacts.archives import open_zip
from pipeline.data.download import fetch
from pipeline.keras_files.archive_checks import HEAD, check_weights_file, describe_file
from pipeline.keras_files.model_file import layers_of
from pipeline.keras_files.read import read_names
from pipeline.recipe.model_rules import check_published
from pipeline.recipe.published_weights import imagenet_weights
from pipeline.recipe.schema import IMAGENET, Model

# Standard deviations of ImageNet's channels, for EfficientNet B0 to B7 (keras/src/applications/efficientnet.py).
_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)


def load_weights(model: keras.Model, config: Model, top: bool = False) -> None:
    """Load the weights that ``model.weights`` names.

    Args:
        model: a backbone, or a whole classifier.
        config: the recipe's model section.
        top: whether ``model`` is a whole classifier. Defaults to False.

    Raises:
        ModelError: no such file, or weights of another network.
        DownloadError: ImageNet weights that are neither cached nor can be downloaded.
    """
    if config.weights is None:
        return
    if config.weights == IMAGENET:
        check_published(config.backbone)
        path = fetch(imagenet_weights(config.backbone, top), "--set model.weights=/path/to/weights.h5")
        model.load_weights(path)  # in the order of layers, as keras.applications does with these files
    else:
        path = Path(config.weights)
        _load_file(model, path, config.backbone)
    if re.fullmatch(r"efficientnetb\d", config.backbone) and (
        config.weights == IMAGENET or _rescales_again(path, config.backbone)
    ):
        _divide_once_more(model)


def set_weights(model: keras.Model, values: list[np.ndarray]) -> None:
    """Call ``model.set_weights`` and update the values that layers derive from their weights."""
    model.set_weights(values)
    _finalize(model)


def keras2_name(layer: str) -> str:
    """Return the name of a layer of keras.applications' ResNet50 in Keras 2.0 to 2.2, such as ``res2a_branch2a``."""
    match = re.fullmatch(r"conv(\d)_block([1-6])_([0-3])_(conv|bn)", layer)
    if match is None:
        return {"conv1_conv": "conv1", "conv1_bn": "bn_conv1", "predictions": "fc1000"}.get(layer, layer)
    stage, block, part, kind = match.groups()
    branch = ("1", "2a", "2b", "2c")[int(part)]
    return f"{'res' if kind == 'conv' else 'bn'}{stage}{'abcdef'[int(block) - 1]}_branch{branch}"


def _finalize(model: keras.Model) -> None:
    """Update the copies of mean and variance that Normalization layers compute with; ``set_weights`` does not."""
    for layer in model.layers:
        if hasattr(layer, "finalize_state") and layer.weights:
            layer.finalize_state()


def _rescales_again(path: Path, backbone: str) -> bool:
    """Whether a file's weights are for a network with the extra division of ``_divide_once_more``.

    They are in the files that Keras publishes, and in a whole model whose architecture has a Rescaling by channel.
    """
    with path.open("rb") as file:
        digest = f"md5:{digest_of(file, 'md5')}"
    if digest in {imagenet_weights(backbone, top).digest for top in (True, False)}:
        return True
    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
    if text is None:
        return False
    layers = layers_of(parse_json(text, str(path), finite=False))
    return any(kind == "Rescaling" and isinstance(s.get("scale"), list) for _, kind, s in layers)


def _divide_once_more(model: keras.Model) -> None:
    """Divide pixels by the square root of the deviation once more, as EfficientNet's published weights require.

    Keras adds a Rescaling after the Normalization, but only where it loads these weights itself. Here the factor is
    part of the Normalization's variance, so that the architecture does not depend on the weights:
    (x - m) / sqrt(v) / sqrt(s) = (x - m) / sqrt(v * s).
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.adapt_variance.assign(layer.adapt_variance * _DEVIATION)
    _finalize(model)


def _load_file(model: keras.Model, path: Path, name: str) -> None:
    _require_hdf5(path, name)
    try:
        check_weights_file(path)
        held = _weight_names(path)
    except ModelError:
        raise
    except Exception as error:  # h5py raises many types on a damaged file
        raise ModelError(
            f"model.weights: expected weights of {name}. Received: {path}, a damaged HDF5 file ({error}). "
            "Copy it again."
        ) from error
    if held is None:
        _load_keras3(model, path, name)
        return
    # A file of Keras 1 or 2, by layer name: Keras itself silently skips layers that the file lacks.
    layers = [layer for layer in model.layers if layer.weights]
    names = {layer: layer.name for layer in layers}
    missing = [layer.name for layer in layers if layer.name not in held]
    renamed = {layer: keras2_name(layer.name) for layer in layers}
    if missing and all(old in held for old in renamed.values()):
        names, missing = renamed, []
    # Where Keras numbers its layers, the same name may belong to another layer.
    elif (missing or _counts_layers(layers)) and (numbered := _by_order(layers, held)):
        names, missing = numbered, []
    if missing:
        raise _of_another_network(path, name, f"lacks {len(missing):,} of its layers", missing)
    values = _values({layer: (old, held[old]) for layer, old in names.items()}, path)
    # Files of Keras 1 and 2 hold the trainable weights of a layer first.
    weights = {layer: [*layer.trainable_weights, *layer.non_trainable_weights] for layer in layers}
    if unfit := [
        layer.name
        for layer in layers
        if [tuple(weight.shape) for weight in weights[layer]] != [value.shape for value in values[layer]]
    ]:
        raise _of_another_network(path, name, f"does not fit {len(unfit):,} of its layers", unfit)
    for layer in layers:
        for weight, value in zip(weights[layer], values[layer]):
            weight.assign(value)
    _finalize(model)


def _load_keras3(model: keras.Model, path: Path, name: str) -> None:
    if not path.name.endswith(".weights.h5"):
        raise ModelError(
            f"model.weights: expected weights of {name}. Received: {path}, weights of Keras 3 under a name that "
            f"Keras 3 does not take. Rename it to {path.stem}.weights.h5"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of each part that the file lacks before it raises
            model.load_weights(path)
    except Exception as error:  # Keras raises many types, and the message may hold the weights themselves
        _, _, unfit = str(error).partition("List of objects that could not be loaded:")
        layers = re.findall(r"<\w+ name=([^,>]+)", unfit) or [layer.name for layer in model.layers if layer.weights]
        raise _of_another_network(path, name, f"does not fit {len(layers):,} of its layers", layers) from error


def _of_another_network(path: Path, name: str, how: str, layers: Sequence[str]) -> ModelError:
    return ModelError(
        f"model.weights: expected weights of {name}. Received: {path}, weights of another network: it {how}, such as "
        f"{listed(layers, most=3)}. Name the file of {name}, or the model.backbone that these weights belong to."
    )


def _require_hdf5(path: Path, name: str) -> None:
    """Refuse anything but an HDF5 file, by its content: a suffix may be wrong."""
    if path.is_file() and h5py.is_hdf5(path):
        return
    if (path / "saved_model.pb").is_file():
        received = "a SavedModel, which is a whole model: use model.path for it"
    elif path.is_dir():
        received = "a folder"
    elif not path.exists():
        received = "which does not exist"
    elif not path.is_file():
        received = "which is a device or a pipe"
    elif _is_keras_archive(path):
        received = "a whole model: use model.path for it"
    else:
        with path.open("rb") as file:
            received = describe_file(path, file.read(HEAD)).partition(". ")[0] or "no HDF5 file"
    raise ModelError(
        f"model.weights: expected weights of {name}, as a .weights.h5 of Keras 3 or an .h5 of Keras 1 or 2. "
        f"Received: {path}, {received}."
    )


def _is_keras_archive(path: Path) -> bool:
    try:
        with open_zip(path) as archive:
            return "config.json" in archive.namelist()
    except (ModelError, zipfile.BadZipFile):
        return False


def _uncounted(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _counts_layers(layers: Sequence[keras.Layer]) -> bool:
    """Whether Keras named some layers by their class and a number that counts over the whole process."""
    from keras.src.utils.naming import to_snake_case

    return any(_uncounted(layer.name) == to_snake_case(type(layer).__name__) for layer in layers)


def _by_order(layers: Sequence[keras.Layer], held: dict[str, list[str]]) -> dict[Any, str]:
    """Pair layers with the names in a file by their order; empty if the names differ in more than a number.

    InceptionV3 and others name their convolutions ``conv2d_17``, where the number depends on what was built before.
    """
    names = [name for name, weights in held.items() if weights][: len(layers)]
    same = [_uncounted(layer.name) for layer in layers] == [_uncounted(name) for name in names]
    return dict(zip(layers, names)) if same else {}


def _values(names: Mapping[Any, tuple[str, list[str]]], path: Path) -> dict[Any, list[np.ndarray]]:
    """Read the weights of each layer from a file of Keras 1 or 2, by the names of layer and weights in the file."""
    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        return {layer: [root[old][name][()] for name in weights] for layer, (old, weights) in names.items()}


def _weight_names(path: Path) -> dict[str, list[str]] | None:
    """Return the layers of a file in its order, with the names of their weights; None for a file of Keras 3."""

    def names(attributes: Any, key: str) -> list[str]:
        return [n.decode() if isinstance(n, bytes) else str(n) for n in read_names(attributes, key)]

    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        layers = names(root.attrs, "layer_names")
        if not layers and root is file and "vars" in file:
            return None
        return {layer: names(root[layer].attrs, "weight_names") for layer in layers or root if layer in root}
