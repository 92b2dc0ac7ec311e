"""Files that try to run code by naming it: refused by name in ``inspect`` and wherever they are loaded; nothing ran."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from keras import layers

from export.errors import ModelError
from pipeline.cli.inspect_model import inspect_model
from pipeline.keras_files.code_scan import scan_config
from pipeline.keras_files.load import load_model
from tests.pipeline.model_attacks import (
    as_objects,
    calling,
    functional,
    lambda_json,
    lambda_layer,
    layer,
    write_archive,
    write_hdf5,
)

pytest.importorskip("tf_keras")


def calls(folder: Path) -> dict[str, dict[str, Any]]:
    """Function -> a model that calls it so that a file ``marker`` appears, where that is what it does."""
    marker, picture = folder / "marker", [[[1.0, 2.0, 3.0]]] * 2
    (folder / "secret").write_text("x")
    evil = json.loads(lambda_json(marker))
    write_hdf5(folder / "evil.h5", evil)
    fetched = {"origin": (folder / "secret").as_uri(), "cache_dir": str(folder), "cache_subdir": "."}
    return {
        "keras.models.model_from_json": calling("keras.models.model_from_json", lambda_json(marker)),
        "keras.models.load_model": calling("keras.models.load_model", str(folder / "evil.h5")),
        "keras.utils.deserialize_keras_object": calling("keras.utils.deserialize_keras_object", evil, safe_mode=False),
        "keras.layers.deserialize": calling("keras.layers.deserialize", evil),
        "keras.utils.get_file": calling("keras.utils.get_file", "marker", **fetched),
        "keras.utils.save_img": calling("keras.utils.save_img", f"{marker}.png", x=picture),
        "keras.preprocessing.image.save_img": calling("keras.preprocessing.image.save_img", f"{marker}.png", x=picture),
        "keras.utils.load_img": calling("keras.utils.load_img", str(folder / "secret")),
        "keras.__internal__.enable_unsafe_deserialization": calling(
            "keras.__internal__.enable_unsafe_deserialization", []
        ),
        "nn.fixed_unigram_candidate_sampler": calling(
            "nn.fixed_unigram_candidate_sampler",
            [[0]],
            num_true=1,
            num_sampled=1,
            unique=False,
            range_max=1,
            vocab_file=str(folder / "secret"),
        ),
    }


NAMES = [
    "keras.models.model_from_json",
    "keras.models.load_model",
    "keras.utils.deserialize_keras_object",
    "keras.layers.deserialize",
    "keras.utils.get_file",
    "keras.utils.save_img",
    "keras.preprocessing.image.save_img",
    "keras.utils.load_img",
    "keras.__internal__.enable_unsafe_deserialization",
    "nn.fixed_unigram_candidate_sampler",
]


def refused(path: Path, name: str, capsys: pytest.CaptureFixture[str], allow: tuple[str, ...] = ()) -> None:
    """The file is refused by name in both places, and left no trace."""
    there = set(path.parent.iterdir())
    assert name in [finding["name"] for finding in inspect_model(path)["unsafe"]]  # type: ignore[attr-defined]
    assert any("unsafe" in line and name in line for line in capsys.readouterr().out.splitlines())
    with pytest.raises(ModelError) as error:
        load_model(path, allow, compare=True)
    assert name in str(error.value)
    assert set(path.parent.iterdir()) == there, "something was written"


@pytest.mark.parametrize("name", NAMES)
def test_functions_that_keras_2_would_call_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = calls(tmp_path)[name]
    refused(write_hdf5(tmp_path / "m.h5", config), name, capsys, (name,))
    refused(write_archive(tmp_path / "m.keras", as_objects(config)), name, capsys, (name,))


def test_the_constants_around_a_function_that_only_computes_are_fine(tmp_path: Path) -> None:
    call = layer("TFOpLambda", [["i", 0, 0, {"y": 0.5}]], name="half", function="math.multiply")
    flat = layer("Flatten", [[["half", 0, 0, {}]]], name="flat")
    assert scan_config(functional(call, flat, end="flat")) == []
    model = load_model(write_hdf5(tmp_path / "m.h5", functional(call, flat, end="flat")))
    np.testing.assert_allclose(model(np.ones((1, 8, 8, 3))), np.full((1, 192), 0.5))


def compiled_inside(folder: Path) -> dict[str, Any]:
    """A model in a model, and the inner one says what it was compiled with: a model that runs code."""
    inner = functional(layer("Flatten", [[["i", 0, 0, {}]]], name="flat"), end="flat")
    outer = as_objects(functional(inner | {"name": "m", "inbound_nodes": [[["i", 0, 0, {}]]]}, end="m"))
    evil = as_objects(json.loads(lambda_json(folder / "marker")))
    outer["config"]["layers"][1]["compile_config"] = {"optimizer": evil, "loss": None}
    return outer


def test_what_an_inner_model_was_compiled_with_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(write_archive(tmp_path / "m.keras", compiled_inside(tmp_path)), "x", capsys)
    model = keras.Sequential([layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2)])
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 9)), "mse", ["accuracy"])
    keras.Sequential([layers.Input((8, 8, 3)), model]).save(tmp_path / "honest.keras")
    assert inspect_model(tmp_path / "honest.keras")["unsafe"] == []
    load_model(tmp_path / "honest.keras")


def test_what_the_whole_model_was_compiled_with_is_not_built(tmp_path: Path) -> None:
    model = keras.Sequential([layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2)])
    model.compile("adam", loss=lambda true, found: found - true)
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        assert inspect_model(tmp_path / name)["unsafe"] == []
        load_model(tmp_path / name)


CLASSES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "a layer that loads a SavedModel, as the whole model": lambda folder: {
        "class_name": "TFSMLayer",
        "config": {"filepath": str(folder)},
    },
    "a function of the module of layers, as the whole model": lambda folder: {
        "class_name": "deserialize",
        "config": {"config": json.loads(lambda_json(folder / "marker"))},
    },
    "a cell": lambda folder: functional(
        layer(
            "RNN",
            [[["i", 0, 0, {}]]],
            name="rnn",
            cell={"class_name": "TFSMLayer", "config": {"filepath": str(folder)}},
        ),
        end="rnn",
    ),
    "an initializer": lambda folder: functional(
        layer(
            "Dense",
            [[["i", 0, 0, {}]]],
            name="d",
            units=2,
            kernel_initializer={"class_name": "deserialize", "config": {"config": {}}},
        ),
        end="d",
    ),
    "a text where Keras 2 looks up an activation": lambda folder: functional(
        layer("Activation", [[["i", 0, 0, {}]]], name="a", activation="deserialize"), end="a"
    ),
    "a text where Keras 2 looks up a layer": lambda folder: functional(
        layer("TimeDistributed", [[["i", 0, 0, {}]]], name="t", layer="deserialize"), end="t"
    ),
    "a class method of TensorFlow": lambda folder: functional(
        layer("ClassMethod", [[["i", 0, 0, {}]]], name="c", cls_symbol="io.TFRecordWriter", method_name="x"), end="c"
    ),
}
EXPECTED = ["TFSMLayer", "deserialize", "TFSMLayer", "deserialize", "deserialize", "deserialize", "ClassMethod"]


@pytest.mark.parametrize(("case", "name"), list(zip(CLASSES, EXPECTED)), ids=[c.replace(" ", "_") for c in CLASSES])
def test_classes_are_looked_at_wherever_they_stand(
    case: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(write_hdf5(tmp_path / "m.h5", CLASSES[case](tmp_path)), name, capsys)


def dense(**settings: Any) -> dict[str, Any]:
    inner = {"class_name": "Dense", "module": "keras.layers", "registered_name": None}
    return {"class_name": "Sequential", "module": "keras", "config": {"layers": [inner | {"config": settings}]}}


def thing(kind: str, module: str | None = None, config: Any = None, **more: Any) -> dict[str, Any]:
    return {"class_name": kind, "module": module, "config": {} if config is None else config, **more}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (dense(activation=thing("function", "builtins", "eval", registered_name="eval")), "eval"),
        (dense(activation=thing("function", "keras.activations", "deserialize")), "deserialize"),
        (dense(activation=thing("function", "builtins", "relu", registered_name="exec")), "exec"),
        (dense(activation="keras>get_file"), "keras>get_file"),
        (dense(kernel_initializer=thing("load_model", "keras.models")), "keras.models.load_model"),
        (dense(kernel_initializer=thing("GlorotUniform", "os")), "os.GlorotUniform"),
        (dense(kernel_initializer=thing("Zeros", "keras.initializers", registered_name="sys")), "sys"),
        (dense(kernel_regularizer="deserialize_keras_object"), "deserialize_keras_object"),
        (dense(split="deserialize"), "deserialize"),
        (dense(dtype=thing("Progbar", "keras.dtype_policies")), "keras.dtype_policies.Progbar"),
        (
            dense(quantization_config=thing("GPTQConfig", "keras.quantizers", {"dataset": "/etc/passwd"})),
            "keras.quantizers.GPTQConfig",
        ),
        (dense(quantization_config=thing("Popen", "subprocess", {"args": "id"})), "subprocess.Popen"),
        (dense(build_config=thing("Popen", "subprocess", {"args": "id"})), "subprocess.Popen"),
        (dense(x=thing("slice", "keras.ops")), "keras.ops.slice"),
        (dense(x=thing("Map", "keras.src.ops.core")), "keras.src.ops.core.Map"),
        (dense(x=thing("__typespec__", "tensorflow", spec_name="X")), "tensorflow.__typespec__"),
        (dense(x={"class_name": "TypeSpec", "type_spec": "tf.RaggedTensorSpec"}), "tf.RaggedTensorSpec"),
        (dense(x={"class_name": "CompositeTensor", "spec": {}, "tensors": []}), "CompositeTensor"),
        (dense(x={"class_name": ["Popen"], "config": {}}), "['Popen']"),
        (dense(x=["_COMPOSITE_TYPE", '{"class_name": "Popen"}']), "_COMPOSITE_TYPE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_objects_in_settings_are_refused_by_name(config: dict[str, Any], name: str) -> None:
    findings = scan_config(config)
    assert [finding.name for finding in findings] == [name]
    assert not findings[0].allowable


@pytest.mark.parametrize("kind", ["StringLookup", "IntegerLookup", "TextVectorization"])
def test_layers_that_read_a_file_are_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = layer(kind, [[["i", 0, 0, {}]]], name="words", vocabulary=str(tmp_path / "secret"))
    config = functional(text, end="words")
    for path in (write_hdf5(tmp_path / "m.h5", config), write_archive(tmp_path / "m.keras", as_objects(config))):
        refused(path, f"{kind} 'words'", capsys)
        with pytest.raises(ModelError, match=r"its vocabulary is a path \(.*secret\): it reads a file"):
            load_model(path)
    text["config"]["vocabulary"] = ["a", "b"]
    assert scan_config(functional(text, end="words")) == []


def test_quantized_layers_of_keras_3_are_sound() -> None:
    model = keras.Sequential([layers.Input((4,)), layers.Dense(8), layers.Dense(2)])
    model.quantize("int8")
    assert scan_config(json.loads(model.to_json())) == []


def saved_by_keras_2(folder: Path) -> Path:
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.Input((8, 8, 3)), tf_keras.layers.Flatten(), tf_keras.layers.Dense(2)])
    model.compile("adam", "mse", ["accuracy"])
    model.evaluate(np.zeros((1, 8, 8, 3)), np.zeros((1, 2)), verbose=0)
    model.save(folder / "m", save_format="tf")
    return folder / "m"


def change_metadata(path: Path, identifier: str, change: Callable[[dict[str, Any]], Any]) -> None:
    from tf_keras.protobuf import saved_metadata_pb2

    file = path / "keras_metadata.pb"
    proto = saved_metadata_pb2.SavedMetadata.FromString(file.read_bytes())
    node = next(n for n in proto.nodes if n.identifier == identifier)
    metadata = json.loads(node.metadata)
    change(metadata)
    node.metadata = json.dumps(metadata)
    file.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("identifier", ["_tf_keras_layer", "_tf_keras_metric"])
def test_what_keras_2_describes_beside_a_graph_is_not_built_unless_it_is_kerass(
    identifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph says what the model computes; its description is not needed."""
    import pipeline.keras_files.keras2

    path = saved_by_keras_2(tmp_path)
    evil = {"config": json.loads(lambda_json(tmp_path / "marker"))}
    change_metadata(path, identifier, lambda node: node.update(class_name="deserialize_keras_object", config=evil))
    with pytest.raises(ModelError, match="a Lambda layer x"):
        load_model(path, ("SavedModel",))
    call = {"class_name": "TFOpLambda", "config": {"name": "f", "function": "keras.models.model_from_json"}}
    change_metadata(path, identifier, lambda node: node.update(call))
    assert inspect_model(path)["facts"]["taken from"].startswith("its graph, not its layers (keras.models.model_from_j")
    monkeypatch.setattr(pipeline.keras_files.keras2, "load_tf_keras", lambda *_, **__: pytest.fail("Keras 2 was asked"))
    assert load_model(path, ("SavedModel",)).output_shape == (None, 2)
    assert not (tmp_path / "marker").exists()
    (path / "keras_metadata.pb").write_bytes(b"\x0a\x05garbage")
    with pytest.raises(ModelError, match="metadata of a Keras 2 SavedModel"):
        load_model(path, ("SavedModel",))


def test_an_architecture_of_keras_1_is_checked_again_in_the_words_of_keras_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.keras_files.keras1

    config = {"class_name": "Sequential", "config": [{"class_name": "Dense", "config": {"output_dim": 2, "name": "d"}}]}
    path = write_hdf5(tmp_path / "m.h5", config)
    assert scan_config(config) == []
    monkeypatch.setattr(pipeline.keras_files.keras1, "translate", lambda _: calling("keras.models.load_model", "x"))
    with pytest.raises(ModelError, match=r"keras\.models\.load_model"):
        load_model(path)


def test_a_lambda_cannot_hide_behind_the_name_that_allows_a_graph(tmp_path: Path) -> None:
    entry = lambda_layer(tmp_path / "marker")
    entry["config"]["name"] = entry["name"] = "SavedModel"
    path = write_hdf5(tmp_path / "m.h5", functional(entry, end="SavedModel"))
    with pytest.raises(ModelError, match="a Lambda layer under the name that allows a SavedModel"):
        load_model(path, ("SavedModel",))
    assert not (tmp_path / "marker").exists()


def test_what_is_passed_to_an_allowed_lambda_is_looked_at(tmp_path: Path) -> None:
    entry = lambda_layer(tmp_path / "marker")
    entry["inbound_nodes"] = [[["i", 0, 0, {"x": thing("Popen", "subprocess")}]]]
    assert [f.name for f in scan_config(functional(entry, end="x"))] == ["x", "subprocess.Popen"]
