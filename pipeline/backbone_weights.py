"""Weights into a backbone or a whole classifier: what Keras publishes, or a file of Keras 1, 2 or 3."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backbones import by_family
from pipeline.config import IMAGENET
from pipeline.download import fetch
from pipeline.errors import ModelError
from pipeline.model_guards import check_weights_file
from pipeline.published_weights import imagenet_weights, published_backbones
from pipeline.recipe import Model
from pipeline.words import listed

if TYPE_CHECKING:
    import keras

# Of ImageNet's channels; what Keras divides by once more in EfficientNet B0 to B7 (applications/efficientnet.py).
_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)


def load_weights(model: keras.Model, config: Model, top: bool = False) -> None:
    """Load what ``model.weights`` names into a backbone, or (``top``) into a whole classifier.

    Raises:
        ModelError: no such file, or weights of another network.
        DownloadError: ImageNet weights that are not here and cannot be fetched.
    """
    if config.weights is None:
        return
    if config.weights == IMAGENET:
        check_published(config.backbone)
        path = fetch(imagenet_weights(config.backbone, top), "--set model.weights=/path/to/weights.h5")
        model.load_weights(path)  # in the order of layers, as keras.applications does with these files
        published = True
    else:
        path = Path(config.weights)
        _load_file(model, path, config.backbone)
        published = _rescales_again(path, config.backbone)
    if published and re.fullmatch(r"efficientnetb\d", config.backbone):
        _divide_once_more(model)


def check_published(backbone: str) -> None:
    """Refuse ``model.weights: imagenet`` where nobody says what the right bytes are.

    Raises:
        ModelError: with the backbones that have published weights.
    """
    if backbone not in published_backbones():
        raise ModelError(
            f"model.weights: expected a file. Received: {IMAGENET} for {backbone}, for which Keras publishes no "
            f"weights with a hash. ImageNet weights exist for {by_family(published_backbones())}. Name one of these as "
            "model.backbone, or a file that you trust as model.weights."
        )


def set_weights(model: keras.Model, values: list[np.ndarray]) -> None:
    """``model.set_weights``, and layers that compute with what they made of their weights make it anew."""
    model.set_weights(values)
    _finalize(model)


def classic_name(layer: str) -> str:
    """The name that Keras 2.0 to 2.2 gave a layer of keras.applications' ResNet50 (``res2a_branch2a``)."""
    fixed = {"conv1_conv": "conv1", "conv1_bn": "bn_conv1", "predictions": "fc1000"}
    match = re.fullmatch(r"conv(\d)_block(\d)_(\d)_(conv|bn)", layer)
    if match is None:
        return fixed.get(layer, layer)
    stage, block, part, kind = match.groups()
    branch = "branch1" if part == "0" else "branch2" + "abc"[int(part) - 1]
    return f"{'res' if kind == 'conv' else 'bn'}{stage}{'abcdef'[int(block) - 1]}_{branch}"


def _finalize(model: keras.Model) -> None:
    """A Normalization computes with a copy of its mean and variance, which ``set_weights`` leaves as it was."""
    for layer in model.layers:
        if hasattr(layer, "finalize_state") and layer.weights:
            layer.finalize_state()


def _rescales_again(path: Path, backbone: str) -> bool:
    """Whether a file holds weights for a network that divides by the deviation once more, see ``_divide_once_more``.

    Two files are known to: what Keras publishes, and a whole model whose architecture says so.
    """
    import h5py

    from export.bounded_json import parse_json
    from pipeline.model_file import layers_of

    if backbone not in published_backbones():
        return False
    with path.open("rb") as file:
        digest = f"md5:{hashlib.file_digest(file, 'md5').hexdigest()}"
    if digest in {imagenet_weights(backbone, top).digest for top in (True, False)}:
        return True
    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
    if text is None:
        return False
    config = parse_json(text, str(path), finite=False)
    return any(kind == "Rescaling" and isinstance(s.get("scale"), list) for _, kind, s in layers_of(config))


def _divide_once_more(model: keras.Model) -> None:
    """EfficientNet's published weights want pixels divided by the square root of the deviation once more.

    Keras puts a Rescaling behind the Normalization, only where it loads these weights itself. Here it goes into the
    Normalization's variance, so that the network is the same whatever its weights are:
    (x - m) / sqrt(v) / sqrt(s) = (x - m) / sqrt(v * s).
    """
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.adapt_variance.assign(layer.adapt_variance * _DEVIATION)
    _finalize(model)


def _load_file(model: keras.Model, path: Path, name: str) -> None:
    if not path.is_file():
        raise ModelError(f"model.weights: expected a file with {name} weights. Received: {path}, which does not exist.")
    try:
        check_weights_file(path)
        if path.name.endswith(".weights.h5"):
            model.load_weights(path)
            return
        # A file of Keras 1 or 2, by layer name: Keras skips layers that the file lacks without a word.
        held = _layer_names(path)
        missing = [layer.name for layer in model.layers if layer.weights and layer.name not in held]
        renamed = {layer: classic_name(layer.name) for layer in model.layers if layer.weights}
        if missing and all(old in held for old in renamed.values()):
            _load_renamed(renamed, path)
            return
        # Where Keras counts, the same name may be another layer.
        if (missing or _counts_layers(model)) and (counted := _by_order(model, held)):
            _load_renamed(counted, path)
            return
        if not missing:
            model.load_weights(path, by_name=True, skip_mismatch=False)
    except Exception as error:  # h5py and Keras raise many types on a wrong file
        raise ModelError(
            f"model.weights: expected weights of {name}. Received: {path}, which does not fit: {error}"
        ) from error
    if missing:
        raise ModelError(
            f"model.weights: expected weights of {name}. Received: {path}, which lacks {len(missing):,} "
            f"of its layers, such as {listed(missing, most=3)}."
        )


def _uncounted(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _counts_layers(model: keras.Model) -> bool:
    """Whether Keras named some layers with weights by their class and a counter that runs over the whole process."""
    from keras.src.utils.naming import to_snake_case

    return any(
        layer.weights and _uncounted(layer.name) == to_snake_case(type(layer).__name__) for layer in model.layers
    )


def _by_order(model: keras.Model, held: dict[str, bool]) -> dict[Any, str]:
    """Layers with weights and their names in a file, one by one; empty if the names differ in more than a counter.

    InceptionV3 and others name their convolutions ``conv2d_17``, where the number depends on what was built before.
    """
    layers = [layer for layer in model.layers if layer.weights]
    names = [name for name, filled in held.items() if filled][: len(layers)]
    if [_uncounted(layer.name) for layer in layers] != [_uncounted(name) for name in names]:
        return {}
    return dict(zip(layers, names))


def _load_renamed(renamed: dict[Any, str], path: Path) -> None:
    import h5py

    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        for layer, old in renamed.items():
            names = [n.decode() if isinstance(n, bytes) else n for n in root[old].attrs["weight_names"]]
            layer.set_weights([root[old][name][()] for name in names])
            if hasattr(layer, "finalize_state"):
                layer.finalize_state()


def _layer_names(path: Path) -> dict[str, bool]:
    """Layers in the order of the file, and whether each holds weights."""
    import h5py

    from pipeline.model_file import names_in

    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in names_in(root.attrs, "layer_names")]
        return {name: bool(len(root[name].attrs.get("weight_names", ()))) for name in names or root if name in root}
