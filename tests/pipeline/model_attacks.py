"""Model files that try to run something: what a stranger could send. Nothing here runs unless a loader lets it."""

from __future__ import annotations

import base64
import json
import marshal
import zipfile
from pathlib import Path
from typing import Any

import h5py

_MODULES = {"Functional": "keras.src.engine.functional", "TFOpLambda": "keras.src.layers.core.tf_op_layer"}


def bytecode(marker: Path) -> list[Any]:
    """The function of a Lambda layer as Keras 2 saves it, which leaves a file."""
    scope: dict[str, Any] = {}
    exec(f"def run(x):\n    open({str(marker)!r}, 'w').close()\n    return x", scope)
    return [base64.b64encode(marshal.dumps(scope["run"].__code__)).decode(), None, None]


def layer(kind: str, inbound: list[Any], **config: Any) -> dict[str, Any]:
    """A layer in the words of Keras 2."""
    name = config.setdefault("name", kind.lower())
    return {"class_name": kind, "config": config, "name": name, "inbound_nodes": inbound}


def functional(*layers: dict[str, Any], end: str) -> dict[str, Any]:
    """A model of Keras 2 of these layers, with one image in."""
    first = layer("InputLayer", [], name="i", batch_input_shape=[None, 8, 8, 3], dtype="float32", sparse=False)
    ends = {"input_layers": [["i", 0, 0]], "output_layers": [[end, 0, 0]]}
    return {"class_name": "Functional", "config": {"name": "m", "layers": [first, *layers], **ends}}


def lambda_layer(marker: Path) -> dict[str, Any]:
    """A Lambda layer that leaves a file when it is called, on the model's input."""
    rest = {"module": "builtins", "output_shape": None, "output_shape_type": "raw", "output_shape_module": None}
    code = {"function": bytecode(marker), "function_type": "lambda", "arguments": {}}
    return layer("Lambda", [[["i", 0, 0, {}]]], name="x", **code, **rest)


def lambda_json(marker: Path) -> str:
    """The JSON of a model whose Lambda layer leaves a file when the model is built."""
    inner = lambda_layer(marker)
    return json.dumps(functional(inner, end="x"))


def calling(function: str, first: Any, **arguments: Any) -> dict[str, Any]:
    """A classifier that calls a function of TensorFlow on constants while Keras 2 builds it."""
    call = layer("TFOpLambda", [["_CONSTANT_VALUE", -1, first, arguments]], name="call", function=function)
    flat = layer("Flatten", [[["i", 0, 0, {}]]], name="flat")
    dense = layer("Dense", [[["flat", 0, 0, {}]]], name="out", units=2, activation="softmax")
    return functional(call, flat, dense, end="out")


def write_hdf5(path: Path, config: dict[str, Any]) -> Path:
    """An HDF5 file of Keras 2 with an architecture and no weights."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.15.0"
        file.create_group("model_weights").attrs["layer_names"] = []
    return path


def write_archive(path: Path, config: dict[str, Any], version: str = "2.15.0") -> Path:
    """A ``.keras`` archive with an architecture and no weights."""
    weights = path.with_suffix(".weights.h5")
    with h5py.File(weights, "w") as file:
        file.create_group("layers")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.write(weights, "model.weights.h5")
    weights.unlink()
    return path


def as_objects(config: Any) -> Any:
    """An architecture of HDF5 files in the words of archives: every object says its module."""
    if isinstance(config, list):
        return [as_objects(item) for item in config]
    if not isinstance(config, dict):
        return config
    new = {key: as_objects(value) for key, value in config.items()}
    if "class_name" in config and "config" in config:
        kind = config["class_name"]
        new["module"] = _MODULES.get(kind, "keras.layers")
        new["registered_name"] = None
    return new
