"""Graphs of SavedModels and of our FrozenGraph layer run operations that only compute, unless others are named."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.client import pywrap_tf_session

from export.errors import ModelError
from pipeline.cli.inspect_model import inspect_model
from pipeline.keras_files.code_scan import FROZEN_GRAPH
from pipeline.keras_files.graph_operations import CHECKPOINT, COMPUTING, describe_effect
from pipeline.keras_files.load import load_classifier, load_model
from pipeline.keras_files.read import read_model_file
from tests.pipeline.model_attacks import as_objects, functional, layer, write_archive


def registered() -> list:
    data = pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    return list(op_def_pb2.OpList.FromString(data).op)


def graph_of(operation: str) -> str:
    definition = tf.compat.v1.GraphDef()
    definition.node.add(name="x", op=operation)
    return base64.b64encode(definition.SerializeToString()).decode()


def test_every_operation_of_tensorflow_is_reviewed_or_refused_by_name(tmp_path: Path) -> None:
    from pipeline.keras_files.graph_operations import find_frozen_operations

    known = {operation.name: operation for operation in registered()}
    assert len(known) > 1800
    assert not COMPUTING - known.keys(), "the list has names that do not exist"
    assert not COMPUTING & CHECKPOINT
    definition = tf.compat.v1.GraphDef()
    for name in known:
        definition.node.add(name=name, op=name)
    found = dict(find_frozen_operations(base64.b64encode(definition.SerializeToString()).decode()))
    assert found.keys() == known.keys() - COMPUTING
    assert all(describe_effect(name) for name in found)
    outside = re.compile(r"filename|file_?path|file_?pattern|directory|url|address|region|library|gradient_op|program")
    for name in COMPUTING - {"ShardedFilename"}:  # it only makes the name
        texts = {part.name for part in (*known[name].input_arg, *known[name].attr)}
        assert not [text for text in texts if outside.search(text)], f"{name} takes {texts}"


def attack(name: str, x: tf.Tensor, marker: Path) -> tf.Tensor:
    """A value that is added to the answer, and what else happens on the way to it."""
    raw = tf.raw_ops
    text, number = tf.constant(str(marker)), tf.constant(0.0)
    if name == "WriteFile":
        raw.WriteFile(filename=text, contents="x")
    elif name == "SaveV2":
        raw.SaveV2(prefix=text, tensor_names=["a"], shape_and_slices=[""], tensors=[x])
    elif name == "RestoreV2":
        return raw.RestoreV2(prefix=text, tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32])[0]
    elif name == "MergeV2Checkpoints":
        raw.MergeV2Checkpoints(checkpoint_prefixes=[text], destination_prefix=text, delete_old_dirs=True)
    elif name == "ReadFile":
        return tf.cast(tf.strings.length(raw.ReadFile(filename=text)), tf.float32)
    elif name == "MatchingFiles":
        return tf.cast(tf.size(raw.MatchingFiles(pattern=text)), tf.float32)
    elif name == "ImmutableConst":
        return raw.ImmutableConst(dtype=tf.float32, shape=[], memory_region_name=str(marker))
    elif name == "LoadAndRemapMatrix":
        rows = tf.constant([0], tf.int64)
        return tf.reduce_sum(
            raw.LoadAndRemapMatrix(
                ckpt_path=text,
                old_tensor_name="a",
                row_remapping=rows,
                col_remapping=rows,
                initializing_values=[],
                num_rows=1,
                num_cols=1,
            )
        )
    elif name == "WholeFileReaderV2":
        return 0 * tf.cast(raw.ReaderNumRecordsProducedV2(reader_handle=raw.WholeFileReaderV2()), tf.float32)
    elif name in ("DebugIdentity", "DebugIdentityV2", "DebugIdentityV3"):
        value = {"DebugIdentityV2": {}}.get(name, {"device_name": "", "tensor_name": "a:0"})
        return getattr(raw, name)(input=number, debug_urls=[f"file://{marker}"], **value)
    elif name == "EagerPyFunc":
        return tf.py_function(lambda: marker.write_text("x") * 0.0, [], tf.float32)
    elif name == "PyFunc":
        return tf.numpy_function(lambda: np.float32(marker.write_text("x")), [], tf.float32)
    elif name == "PrintV2":
        tf.print("x", output_stream=f"file://{marker}")
    elif name == "FixedUnigramCandidateSampler":
        ids = tf.constant([[0]], tf.int64)
        sampled = raw.FixedUnigramCandidateSampler(
            true_classes=ids, num_true=1, num_sampled=1, unique=False, range_max=1, vocab_file=str(marker)
        )
        return tf.cast(sampled.sampled_candidates[0], tf.float32)
    elif name == "InitializeTableFromTextFileV2":
        lines = tf.lookup.TextFileInitializer(text, tf.string, 0, tf.int64, 1)
        raw.InitializeTableFromTextFileV2(
            table_handle=raw.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64),
            filename=text,
            key_index=lines._key_index,
            value_index=lines._value_index,
        )
    elif name == "TextLineDataset":
        return tf.cast(tf.data.TextLineDataset([str(marker)]).cardinality(), tf.float32)
    return number


OUTSIDE = """
    WriteFile SaveV2 RestoreV2 MergeV2Checkpoints ReadFile MatchingFiles ImmutableConst LoadAndRemapMatrix
    WholeFileReaderV2 DebugIdentity DebugIdentityV2 DebugIdentityV3 EagerPyFunc PyFunc PrintV2
    FixedUnigramCandidateSampler InitializeTableFromTextFileV2 TextLineDataset
"""


def attacking_folder(name: str, folder: Path, marker: Path, *, nested: bool) -> Path:
    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = tf.Variable(tf.ones((3, 2)))

        @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3))])
        def __call__(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            if nested:
                more = tf.cond(tf.reduce_sum(x) > 1e30, lambda: tf.constant(0.0), lambda: attack(name, x, marker))
            else:
                more = attack(name, x, marker)
            return {"scores": tf.reduce_mean(x, [1, 2]) @ self.weight + more}

    module = Module()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.__call__})
    return folder


@pytest.mark.parametrize("name", OUTSIDE.split())
def test_a_saved_model_that_reaches_outside_is_refused_by_name(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = attacking_folder(name, tmp_path / "m", marker, nested=len(name) % 2 == 0)
    found = {finding.name: finding for finding in read_model_file(path).findings}
    assert name in found
    assert found[name].allowable
    with pytest.raises(ModelError, match=name):
        load_model(path, ("SavedModel",))
    assert not list(tmp_path.glob("marker*"))


def test_the_saver_may_use_files_and_nothing_else_may(tmp_path: Path) -> None:
    path = attacking_folder("none", tmp_path / "m", tmp_path / "marker", nested=False)
    assert [finding.name for finding in read_model_file(path).findings] == ["SavedModel"]
    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graph = proto.meta_graphs[0].graph_def
    writes = next(f for f in graph.library.function if any(n.op == "SaveV2" for n in f.node_def))
    serving = next(f for f in graph.library.function if "signature_wrapper" in f.signature.name)
    stolen = serving.node_def.add(name="stolen", op="StatefulPartitionedCall")
    stolen.attr["f"].func.name = writes.signature.name
    (path / "saved_model.pb").write_bytes(proto.SerializeToString())
    assert "SaveV2" in [finding.name for finding in read_model_file(path).findings]


def test_every_graph_of_a_saved_model_is_looked_at(tmp_path: Path) -> None:
    path = attacking_folder("none", tmp_path / "m", tmp_path / "marker", nested=False)
    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    proto.meta_graphs.add().graph_def.node.add(name="w", op="WriteFile")
    (path / "saved_model.pb").write_bytes(proto.SerializeToString())
    assert "WriteFile" in [finding.name for finding in read_model_file(path).findings]


def frozen(operation: str, module: str = "pipeline.keras_files.frozen_graph") -> dict:
    config = {"graph": graph_of(operation), "feed": "x:0", "fetch": "x:0", "shapes": {}}
    entry = layer("FrozenGraph", [[["i", 0, 0, {}]]], name="graph", **config)
    model = as_objects(functional(entry, end="graph"))
    model["config"]["layers"][1] |= {"module": module, "registered_name": FROZEN_GRAPH}
    return model


def test_a_model_that_was_saved_before_the_layer_moved_opens_as_before(tmp_path: Path) -> None:
    model = frozen("Relu", "pipeline.frozen_graph")
    path = write_archive(tmp_path / "m.keras", model, "3.10.0")
    assert [f.name for f in read_model_file(path).findings] == ["SavedModel"]


def test_the_graph_of_an_archive_is_looked_at_too(tmp_path: Path) -> None:
    """``allow: [SavedModel]`` lets a graph compute, not write files."""
    path = write_archive(tmp_path / "m.keras", frozen("WriteFile"), "3.10.0")
    assert [f.name for f in read_model_file(path).findings] == ["SavedModel", "WriteFile"]
    with pytest.raises(ModelError, match=r"WriteFile: reads or writes files.*model\.allow=\[SavedModel, WriteFile\]"):
        load_model(path, ("SavedModel",))
    hidden = frozen("WriteFile")  # Keras looks at the registered name before the class
    hidden["config"]["layers"][1]["class_name"] = "Lambda"
    (found,) = read_model_file(write_archive(path, hidden, "3.10.0")).findings
    assert (found.name, found.allowable) == ("pipeline.keras_files.frozen_graph.Lambda", False), "no name lets it run"
    damaged = frozen("Relu")
    damaged["config"]["layers"][1]["config"]["graph"] = base64.b64encode(b"garbage").decode()
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(write_archive(path, damaged, "3.10.0"), ("SavedModel",))


def test_what_was_allowed_in_a_saved_model_stays_named_in_the_trained_file(tmp_path: Path) -> None:
    path = attacking_folder("ReadFile", tmp_path / "m", tmp_path / "text", nested=False)
    (tmp_path / "text").write_text("abc")
    allow = ("SavedModel", "ReadFile")
    load_model(path, allow).save(tmp_path / "trained.keras")
    assert [f.name for f in read_model_file(tmp_path / "trained.keras").findings] == list(allow)
    with pytest.raises(ModelError, match="ReadFile"):
        load_classifier(tmp_path / "trained.keras", ("SavedModel",))
    model = load_classifier(tmp_path / "trained.keras", allow)
    np.testing.assert_allclose(model(np.zeros((1, 16, 16, 3), np.float32)), [[3.0, 3.0]])


def test_honest_exports_need_no_more_than_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.RandomFlip()(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.BatchNormalization()(keras.layers.SeparableConv2D(4, 3, activation="gelu")(x))
    x = keras.layers.LSTM(4)(keras.layers.Reshape((14, 56))(keras.layers.Dropout(0.1)(x)))
    keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x)).export(tmp_path / "m", verbose=False)
    assert [f["name"] for f in inspect_model(tmp_path / "m")["unsafe"]] == ["SavedModel"]  # type: ignore[attr-defined]
    assert "unsafe         SavedModel: a program" in capsys.readouterr().out
