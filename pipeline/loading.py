"""Opens a Keras file that somebody else made, without letting it run code."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError
from pipeline.tensorflow_start import start_tensorflow

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def load_classifier(path: Path, allow: Sequence[str] = ()) -> keras.Model:
    """Load a finished Keras image classifier for inference.

    Args:
        path: a ``.keras`` archive or a legacy ``.h5`` file.
        allow: names of Lambda layers that may run the code they carry.

    Returns:
        The model, not compiled.

    Raises:
        ModelError: no such file, not a Keras model, a Lambda layer that is not allowed by name, custom classes,
            or not an image classifier.
    """
    lambdas = [name for name in _lambda_layers(_model_config(path)) if name not in allow]
    if lambdas:
        raise ModelError(
            f"Expected a model without code in it. Received: {path} with Lambda layers {', '.join(lambdas)}, which "
            f"run whatever its author wrote. If you trust it: --set 'model.allow=[{', '.join(lambdas)}]'."
        )
    start_tensorflow()
    import keras

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=not allow)
    except Exception as error:  # Keras raises many types on what it cannot rebuild
        raise ModelError(f"Expected a Keras model that loads. Received: {path}: {error}") from error
    check_classifier(model, path)
    return model


def check_classifier(model: keras.Model, path: Path) -> None:
    """Refuse what is not an image classifier, saying what it is instead.

    Raises:
        ModelError: several inputs or outputs, or other shapes than (N, height, width, 3) to (N, classes).
    """
    inputs = [tuple(t.shape) for t in model.inputs]
    outputs = [tuple(t.shape) for t in model.outputs]
    found = f"{path} takes {inputs} and gives {outputs}"
    if len(inputs) != 1 or len(inputs[0]) != 4 or inputs[0][-1] != 3 or None in inputs[0][1:]:
        raise ModelError(f"Expected one input of shape (N, height, width, 3), fixed size. Received: {found}.")
    if len(outputs) != 1 or len(outputs[0]) != 2 or outputs[0][-1] is None or outputs[0][-1] < 2:
        raise ModelError(f"Expected one output of shape (N, classes), at least two classes. Received: {found}.")


def _model_config(path: Path) -> Any:
    """The architecture as JSON, read without Keras."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing there"
        raise ModelError(f"model.path: expected a .keras or .h5 file. Received: {path} ({what}).")
    with path.open("rb") as file:
        head = file.read(8)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("config.json"))
        if head == HDF5_SIGNATURE:
            return _h5_config(path)
    except ModelError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise ModelError(f"Expected a whole Keras file. Received: {path}, damaged: {error}") from error
    raise ModelError(
        f"Expected a Keras model (.keras archive or HDF5). Received: {path}, which is neither; it starts with {head!r}."
    )


def _h5_config(path: Path) -> Any:
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
    if text is None:
        raise ModelError(
            f"Expected a whole model. Received: {path}, which holds weights only. Save it with model.save(...), or "
            "name it as model.weights of a recipe with the right model.backbone."
        )
    return json.loads(text if isinstance(text, str) else text.decode())


def _lambda_layers(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if config.get("class_name") == "Lambda":
            inner = config.get("config")
            yield inner.get("name", "unnamed") if isinstance(inner, dict) else "unnamed"
            return  # the function it carries is part of it
        if config.get("class_name") == "__lambda__":
            yield "__lambda__"
        for value in config.values():
            yield from _lambda_layers(value)
    elif isinstance(config, list):
        for value in config:
            yield from _lambda_layers(value)
