"""Features are what enters the last Dense layer, and every other answer stays as it was, to the bit."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.errors import RunnerError
from export.onnx_passes.signature import append_top_k
from pipeline.artifacts.tensor_changes import write_changes
from pipeline.inference.classify import Settings, classify
from pipeline.inference.embeddings import EmbeddingRunner, open_embeddings, with_features
from pipeline.inference.pace import Pace
from pipeline.models.model_card import ModelCard, read_card
from pipeline.runners.onnxruntime import OnnxRunner
from tests import tiny_onnx
from tests.conftest import Chain
from tests.fakes.inference import CARD, TextDecode, TextReader, items

PRECISIONS = ("fp32", "fp16", "int8")


def same_answers(path: Path, precision: str, pixels: np.ndarray, k: int = 3) -> np.ndarray:
    """The features, after everything else was compared with a runner without them."""
    before = hashlib.sha256(path.read_bytes()).digest()
    with OnnxRunner(path, precision=precision, threads=1) as plain:
        expected, expected_top = plain.infer(pixels), plain.top(pixels, k)
    with EmbeddingRunner(path, precision=precision, threads=1) as runner:
        found, (top, features) = runner.infer(pixels), runner.top_and_features(pixels, k)
        assert features.shape == (len(pixels), runner.features)
    for one, other in zip((*expected, *expected_top), (*found, *top), strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert features.dtype == np.float32
    return features


@pytest.mark.parametrize("precision", PRECISIONS)
def test_features_of_a_small_model_are_its_pooled_maps(tmp_path: Path, precision: str) -> None:
    path = tiny_onnx.write(tmp_path / "model.onnx", precision, channels=24)
    write_changes(tmp_path / "tensors.npz", {}, {})
    pixels = tiny_onnx.pixels(7)
    features = same_answers(path, precision, pixels)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    with OnnxRunner(path, precision=precision) as runner:
        logits = runner.infer(pixels).logits
    assert features @ weights["dense"].astype(np.float32) == pytest.approx(logits, rel=2e-2, abs=2e-2)


def test_features_of_an_int8_file_are_brought_back_to_the_values_of_keras(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "model.onnx", "int8", channels=24)
    with pytest.raises(RunnerError, match=r"Expected tensors\.npz beside .*model\.onnx.* Received: none"):
        EmbeddingRunner(path, precision="int8").__enter__()
    write_changes(tmp_path / "tensors.npz", {}, {})
    before = same_answers(path, "int8", tiny_onnx.pixels(7))
    tensor = next(node.input[0] for node in onnx.load(path).graph.node if node.op_type == "Gemm")
    write_changes(tmp_path / "tensors.npz", {tensor: np.arange(1.0, 25.0)}, {tensor: np.full(1, 0.5)})
    assert same_answers(path, "int8", tiny_onnx.pixels(7)) == pytest.approx((before + 0.5) * np.arange(1, 25), rel=1e-6)


def test_features_of_an_exported_model_are_those_of_keras(finished_chain: Chain) -> None:
    import keras

    card = read_card(finished_chain.root / "train/model.json")
    files = sorted(finished_chain.images.rglob("*.png"))[:40]
    pixels = np.stack([card.decode.pixels(path) for path in files])
    model = keras.models.load_model(finished_chain.root / "train/model.keras", compile=False)
    (dense,) = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    expected = keras.Model(model.inputs, dense.input).predict(card.preprocessing.apply(pixels), verbose=0)
    for precision, name, most in (
        ("fp32", "export/model.onnx", 1e-6),
        ("fp16", "quantize/model.fp16.onnx", 1e-3),
        ("int8", "quantize/model.int8.onnx", 0.05),  # all layers before it add their rounding
    ):
        features = same_answers(finished_chain.root / name, precision, pixels)
        assert np.linalg.norm(features - expected) < most * np.linalg.norm(expected), precision


def test_best_classes_that_the_graph_selects_come_with_features_too(tmp_path: Path) -> None:
    model = append_top_k(tiny_onnx.classifier(channels=24), "probabilities", 2)
    onnx.save(model, tmp_path / "model.onnx")
    pixels = tiny_onnx.pixels(5)
    features = same_answers(tmp_path / "model.onnx", "fp32", pixels, k=2)
    assert features == pytest.approx(same_answers(tmp_path / "model.onnx", "fp32", pixels, k=3))


def test_rows_without_an_answer_have_no_features(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "model.onnx")
    card = sized()
    kinds = ["missing", 3, "missing", "missing", "missing"]
    with EmbeddingRunner(path) as runner:
        found = [
            batch.embeddings
            for batch in classify(items(kinds), TextReader(), runner, card, Settings(3, 1, embeddings=True), Pace())
        ]
        plain = list(classify(items(kinds), TextReader(), runner, card, Settings(3, 1), Pace()))
    first, second = found
    assert first is not None
    assert second is not None
    assert first.dtype == second.dtype == np.float32
    assert (first.shape, second.shape) == ((3, 8), (2, 8))
    assert np.isnan(first).all(axis=1).tolist() == [True, False, True]
    assert np.isfinite(first[1]).all()
    assert np.isnan(second).all()
    assert [batch.embeddings for batch in plain] == [None, None]


def sized() -> ModelCard:
    """A card of the small model, whose file has no decode specification to compare."""

    class Card(ModelCard):
        def metadata(self) -> dict[str, object]:
            return {}

    decode = TextDecode((tiny_onnx.SIZE, tiny_onnx.SIZE), "stretch")
    return Card(tiny_onnx.CLASSES, CARD.preprocessing, decode, "softmax")


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-tensorrt"])
def test_an_engine_is_refused_by_name(tmp_path: Path, backend: str) -> None:
    with pytest.raises(RunnerError, match=f"on {backend}. --embeddings needs the ONNX file: --backend onnxruntime."):
        open_embeddings(tmp_path / "model.plan", backend, "fp16")


def test_the_file_is_opened_as_it_is_without_features(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "model.onnx")
    with open_embeddings(path, "onnxruntime", "fp32", threads=1, spinning=False) as runner:
        assert (runner.backend, runner.threads, runner.features, runner.max_batch) == ("onnxruntime", 1, 8, 256)


def graph(*nodes: onnx.NodeProto, weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A graph from ``images`` to ``logits``; the weights are zeros of these shapes."""
    tensors = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("images", "logits")]
    return helper.make_model(helper.make_graph(nodes, "small", ends[:1], ends[1:], tensors))


def entering(model: onnx.ModelProto) -> str:
    """The tensor that became the further output."""
    nodes = {node.output[0]: node for node in with_features(model, "small.onnx").graph.node}
    return str(nodes[nodes["embeddings"].input[0]].input[0])


NODE = helper.make_node


def test_of_two_dense_layers_the_last_one_counts() -> None:
    model = graph(
        NODE("MatMul", ["images", "a"], ["hidden"]),
        NODE("Relu", ["hidden"], ["active"]),
        NODE("Gemm", ["active", "b"], ["logits"]),
        weights={"a": (9, 8), "b": (8, 3)},
    )
    assert entering(model) == "active"


def test_rounding_before_the_last_dense_layer_is_left_out() -> None:
    model = graph(
        NODE("Relu", ["images"], ["pooled"]),
        NODE("Cast", ["pooled"], ["half"], to=TensorProto.FLOAT16),
        NODE("QuantizeLinear", ["half", "s"], ["q"]),
        NODE("DequantizeLinear", ["q", "s"], ["dq"]),
        NODE("DequantizeLinear", ["w", "s"], ["kernel"]),
        NODE("MatMul", ["dq", "kernel"], ["product"]),
        NODE("Add", ["bias", "product"], ["logits"]),
        weights={"s": (), "w": (8, 3), "bias": (3,)},
    )
    assert entering(model) == "pooled"


@pytest.mark.parametrize(("shape", "transposed"), [((1, 2), 0), ((2, 1), 1)])
def test_the_layer_that_makes_two_classes_of_one_unit_is_not_the_classifier(
    shape: tuple[int, int], transposed: int
) -> None:
    model = graph(
        NODE("Gemm", ["images", "a"], ["unit"]),
        NODE("Gemm", ["unit", "two"], ["logits"], transB=transposed),
        weights={"a": (8, 1), "two": shape},
    )
    assert entering(model) == "images"


def test_both_ways_from_one_dense_layer_are_one() -> None:
    model = graph(
        NODE("Gemm", ["images", "a"], ["z"]),
        NODE("Neg", ["z"], ["minus"]),
        NODE("Concat", ["z", "minus"], ["logits"], axis=1),
        weights={"a": (8, 2)},
    )
    assert entering(model) == "images"


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([NODE("Conv", ["images", "a"], ["logits"], "head")], "Received: Conv head before it in small.onnx"),
        ([NODE("Softmax", ["images"], ["logits"])], "Received: the input before it"),
        ([NODE("MatMul", ["images", "images"], ["logits"], "dot")], "Received: MatMul dot before it"),
        (
            [
                NODE("Gemm", ["images", "a"], ["one"]),
                NODE("Gemm", ["images", "a"], ["other"]),
                NODE("Add", ["one", "other"], ["logits"]),
            ],
            "Expected one Dense layer that gives the logits. Received: 2 in small.onnx",
        ),
    ],
)
def test_a_graph_without_one_last_dense_layer_is_refused(nodes: list[onnx.NodeProto], said: str) -> None:
    with pytest.raises(RunnerError) as caught:
        with_features(graph(*nodes, weights={"a": (8, 3)}), "small.onnx")
    assert said in str(caught.value)
    assert "--embeddings needs a model that ends in" in str(caught.value)


def test_maps_that_enter_the_last_dense_layer_are_refused(tmp_path: Path) -> None:
    model = tiny_onnx.classifier()
    nodes = model.graph.node
    pooled = next(index for index, node in enumerate(nodes) if node.op_type == "GlobalAveragePool")
    for node in list(nodes[pooled:]):
        nodes.remove(node)
    length = tiny_onnx.SIZE
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((length, length), np.float32), "wide"))
    nodes.extend(
        [
            NODE("MatMul", ["relu", "wide"], ["maps"]),
            NODE("Flatten", ["maps"], ["logits"]),
            NODE("Softmax", ["logits"], ["probabilities"]),
        ]
    )
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = 8 * math.prod((length, length))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(RunnerError, match=r"Expected one row of features for each image. Received: \(1, 8, 16, 16\)"):
        EmbeddingRunner(tmp_path / "model.onnx").__enter__()
