"""No file decides which modules are imported: where a class says it comes from is judged, of every kind, everywhere."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest

import pipeline.keras_files.load
from export.errors import ModelError
from pipeline.cli.inspect_model import inspect_model
from pipeline.keras_files.allowed_names import (
    APPLICATION_LAYERS,
    INITIALIZERS,
    KNOWN_LAYERS,
    OPERATIONS,
    PARTS,
    is_defined_in,
)
from pipeline.keras_files.code_scan import _VALUES, FROZEN_GRAPH, scan_config
from pipeline.keras_files.load import load_model
from pipeline.keras_files.load_guards import keras_modules_only
from tests.pipeline.model_attacks import as_objects, functional, layer, write_archive, write_hdf5

tf_keras = pytest.importorskip("tf_keras")

# One of each kind that the scan tells apart, as sound as it can be.
KINDS: dict[str, dict[str, Any]] = {
    "Dense": {"config": {"units": 2}},
    "Sequential": {"config": {"layers": []}},
    "Lambda": {"config": {"name": "x"}},
    "__lambda__": {"config": {"code": "x"}},
    "TFOpLambda": {"config": {"function": "nn.relu", "name": "x"}},
    "SlicingOpLambda": {"config": {"function": "__operators__.getitem", "name": "x"}},
    "function": {"config": "relu"},
    "TypeSpec": {"type_spec": "tf.TensorSpec", "serialized": []},
    "Add": {"config": {}},
    "GlorotUniform": {"config": {}},
    "L2": {"config": {}},
    "MaxNorm": {"config": {}},
    "ReLU": {"config": {}},
    "DTypePolicy": {"config": {"name": "float32"}},
    "AbsMaxQuantizer": {"config": {}},
    "Adam": {"config": {}},
    "MeanSquaredError": {"config": {}},
    "LayerScale": {"config": {}},
    "FrozenGraph": {"config": {}},
    FROZEN_GRAPH: {"config": {}},
    **{kind: {"config": {}, "items": []} for kind in sorted(_VALUES)},
}
FOREIGN = [
    {"module": "evilmod"},
    {"module": "evilmod", "registered_name": "evil"},
    {"module": "keras.utils", "registered_name": "evil"},
    {"registered_name": "evil"},
    {"registered_name": ["evil"]},
    {"module": {"class_name": "Dense"}},
    {"module": ["evilmod"]},
    {"module": ""},
    {"module": "keras_core.layers"},
    {"module": "kerasevil"},
    {"module": "keras.layers.core\n"},
]


def positions(node: dict[str, Any]) -> dict[str, Any]:
    """Architectures with the node at every place that Keras builds."""
    flat = layer("Flatten", [[["i", 0, 0, {}]]], name="flat")
    model = functional(flat, end="flat")

    def in_flat(**change: Any) -> dict[str, Any]:
        changed = copy.deepcopy(model)
        changed["config"]["layers"][1] |= change
        return changed

    return {
        "the whole": node,
        "a layer": functional(flat, node, end="flat"),
        "a layer of a model inside": functional(functional(flat, node, end="flat"), end="m"),
        "a Sequential of Keras 1": {"class_name": "Sequential", "config": [node]},
        "a setting": in_flat(config={"name": "flat", "x": node}),
        "an initializer": in_flat(class_name="Dense", config={"units": 2, "kernel_initializer": node}),
        "a list in a setting": in_flat(config={"name": "flat", "x": [1, {"y": [node]}]}),
        "a wrapped layer": in_flat(class_name="TimeDistributed", config={"layer": node}),
        "an argument": in_flat(inbound_nodes=[[["i", 0, 0, {"training": node}]]]),
        "a first argument": in_flat(inbound_nodes=[{"args": [node], "kwargs": {}}]),
        "a named argument": in_flat(inbound_nodes=[{"args": [], "kwargs": {"x": node}}]),
        "what it was compiled with": in_flat(compile_config={"optimizer": node}),
        "what it was built with": in_flat(build_config={"input_shape": node}),
        "a value of a value": in_flat(config={"x": {"class_name": "__tuple__", "items": [node]}}),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_origin_is_refused_of_every_kind_in_every_place(kind: str) -> None:
    for foreign in FOREIGN:
        for place, config in positions({"class_name": kind, **KINDS[kind], **foreign}).items():
            assert any(not f.allowable for f in scan_config(config)), (foreign, place)


@pytest.mark.parametrize("kind", [None, 5, ["Dense"], {"class_name": "Dense"}, "missing"])
def test_a_node_without_a_name_for_its_class_is_refused(kind: Any) -> None:
    node = {"module": "evilmod", "registered_name": "evil", "config": {}}
    node |= {} if kind == "missing" else {"class_name": kind}
    for place, config in positions(node).items():
        assert any(not f.allowable for f in scan_config(config)), place


def honest(library: Any) -> Callable[[], Any]:
    """A model with a part of most kinds."""

    def build() -> Any:
        k = library
        x = inputs = k.Input((16, 16, 3))
        for step in (
            k.layers.Rescaling(1 / 127.5, offset=-1),
            k.layers.RandomFlip("horizontal"),
            k.layers.Conv2D(
                4,
                3,
                kernel_regularizer=k.regularizers.L1L2(0.1, 0.1),
                kernel_constraint=k.constraints.MaxNorm(3),
                bias_initializer=k.initializers.Constant(0.1),
                activation=k.layers.LeakyReLU(),
                dtype="mixed_float16",
            ),
            k.layers.BatchNormalization(),
            k.layers.TimeDistributed(k.layers.Dense(3, activation=k.activations.relu)),
            k.layers.GlobalAveragePooling2D(),
            k.layers.Dense(3, activation="softmax", dtype="float32"),
        ):
            x = step(x)
        inner = k.Model(inputs, x + 0.5)
        inner.compile("adam", k.losses.CategoricalCrossentropy(label_smoothing=0.1), metrics=["accuracy"])
        return k.Sequential([k.Input((16, 16, 3)), inner])

    return build


def keras2_initializer() -> Any:
    import tensorflow as tf

    dense = tf_keras.layers.Dense(2, bias_initializer=tf.constant_initializer(0.5))
    return tf_keras.Sequential([tf_keras.layers.Input((4,)), dense])


MODELS: dict[str, Callable[[], Any]] = {
    "Keras 3": honest(keras),
    "Keras 2": honest(tf_keras),
    "Keras 2 with an initializer of TensorFlow": keras2_initializer,
}


def names_in(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every text that says a module, a class or the name it is registered under."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key in ("module", "class_name", "registered_name") and isinstance(value, str):
            yield (*path, key)
        yield from names_in(value, (*path, key))


@pytest.mark.parametrize("name", MODELS)
def test_one_unknown_name_anywhere_in_an_honest_model_is_found(name: str, tmp_path: Path) -> None:
    MODELS[name]().save(tmp_path / "m.keras")
    from pipeline.keras_files.read import read_model_file

    file = read_model_file(tmp_path / "m.keras")
    assert file.findings == ()
    config = file.config
    config.pop("compile_config", None)  # of the whole model, which is not built
    ways = list(names_in(config))
    assert len(ways) > 5
    for way in ways[:: max(1, len(ways) // 150)]:
        *parents, last = way
        node: Any = config
        for key in parents:
            node = node[key]
        former, node[last] = node[last], "evil"
        assert scan_config(config), way
        node[last] = former
    assert scan_config(config) == []


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_an_initializer_of_tensorflow_is_one_of_keras(suffix: str, tmp_path: Path) -> None:
    keras2_initializer().save(tmp_path / f"m{suffix}")
    assert inspect_model(tmp_path / f"m{suffix}")["unsafe"] == []
    load_model(tmp_path / f"m{suffix}", compare=True)


def test_a_class_is_taken_only_from_where_it_lives() -> None:
    for kind in KNOWN_LAYERS | OPERATIONS | PARTS | APPLICATION_LAYERS.keys():
        for module in (
            "evilmod",
            "builtins",
            "os",
            "numpy",
            "keras.utils",
            "keras.src.saving.saving_lib",
            "tensorflow",
        ):
            assert not is_defined_in(kind, module), (kind, module)
        if kind not in INITIALIZERS:
            assert not is_defined_in(kind, "tensorflow.python.ops.init_ops_v2"), kind
        assert not is_defined_in(kind, "tensorflow.python.ops.io_ops"), kind
    assert not is_defined_in("Dense", "keras.src.initializers")
    assert not is_defined_in("LayerScale", "keras.layers")


@pytest.fixture
def evilmod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the working directory that leaves a file when it is imported."""
    marker = tmp_path / "marker"
    for name in ("evilmod", "tf_keras_evil"):
        text = f"open({str(marker)!r}, 'w').close()\nclass evil:\n    from_config = classmethod(lambda cls, c: cls())\n"
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return marker


def sequential(node: dict[str, Any]) -> dict[str, Any]:
    given = layer("InputLayer", [], name="i", batch_input_shape=[None, 8, 8, 3], dtype="float32", sparse=False)
    config = {"name": "s", "layers": [as_objects(given), node]}
    return {"class_name": "Sequential", "module": "keras", "registered_name": None, "config": config}


EVIL = {"class_name": "TFOpLambda", "registered_name": "evil", "config": {"function": "nn.relu", "name": "x"}}
BLIND: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "the whole": lambda node: node,
    "a layer": sequential,
    "an initializer": lambda node: sequential(
        as_objects(layer("Dense", [], units=2)) | {"config": {"units": 2, "kernel_initializer": node}}
    ),
}


@pytest.mark.parametrize("module", ["evilmod", "keras_evil"])
@pytest.mark.parametrize("place", BLIND)
def test_nothing_is_imported_even_if_the_scan_were_blind(
    module: str, place: str, tmp_path: Path, evilmod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BLIND[place](EVIL | {"module": module})
    paths = [write_archive(tmp_path / "m.keras", config), write_hdf5(tmp_path / "m.h5", config)]
    for path in paths:
        found = inspect_model(path)["unsafe"]
        assert "evil" in [finding["name"] for finding in found]  # type: ignore[attr-defined]
        with pytest.raises(ModelError, match="a class whose code is not in the file"):
            load_model(path)
    monkeypatch.setattr(pipeline.keras_files.load, "refuse_unsafe", lambda *_: None)
    reason = rf"imports '(tf_)?{module}'" if place == "the whole" else "Expected a model"
    with pytest.raises(ModelError, match=reason):
        load_model(paths[0])
    with contextlib.suppress(ModelError):  # in such files Keras 2 looks up some parts by name alone
        load_model(paths[1])
    assert not evilmod.exists()


def test_of_tensorflow_only_the_activations_are_there() -> None:
    from tf_keras.src.saving import serialization_lib

    def function(name: str, module: str = "tensorflow.python.ops.nn_ops") -> Any:
        node = {"class_name": "function", "module": module, "registered_name": "function", "config": name}
        return serialization_lib.deserialize_keras_object(node)

    with keras_modules_only():
        assert function("leaky_relu").__name__ == "leaky_relu"
        with pytest.raises(TypeError, match="max_pool"):
            function("max_pool")
        with pytest.raises(ModelError, match=r"imports 'tensorflow\.python\.ops\.io_ops'"):
            function("read_file", "tensorflow.python.ops.io_ops")


def test_the_guard_is_only_there_while_a_model_loads(evilmod: Path) -> None:
    from tf_keras.src.saving import serialization_lib

    entry = {"class_name": "evil", "module": "evilmod", "registered_name": None, "config": {"x": 1}}
    with keras_modules_only():
        with pytest.raises(ModelError, match=r"Keras' own modules\. Received: one that imports 'evilmod'"):
            serialization_lib.deserialize_keras_object(entry)
        assert serialization_lib.deserialize_keras_object(
            serialization_lib.serialize_keras_object(tf_keras.losses.Huber())
        )
    assert not evilmod.exists()
    serialization_lib.deserialize_keras_object(entry)
    assert evilmod.exists()
