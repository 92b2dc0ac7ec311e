"""A bottleneck in INT8 as quantize makes it: equalized, lowered behind its ReLUs, biases corrected; and its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from export.calibration import collect_statistics
from export.files import write_atomic
from export.int8.bias_correction import added_to_biases
from export.int8.calibrated import calibrate
from export.int8.equalization import STRENGTHS
from export.int8.placement import Kept, measured_tensors
from export.int8.qdq import quantize
from export.int8.regions import find_regions
from export.int8.rounding_record import record_rounding
from export.int8.scales import Scales
from export.int8.weights import RoundedWeight
from pipeline.artifacts.files import write_json
from pipeline.artifacts.tensor_changes import read_changes, write_changes
from pipeline.verification.checks.rounded import Origin
from pipeline.verification.layers.keras_layers import INPUT
from pipeline.verification.layers.subject import Subject
from tests.export.tiny_graphs import graph, pixels
from tests.fakes.keras_layers import FakeKerasLayers

SOURCE = "export/model.onnx"
PIXELS = pixels(24, 12, 12, 3, seed=3)
SIDE, WIDE, NARROW, CLASSES = 12, 12, 8, 5
# Layer -> class, inputs, tensor, whether its channels come first.
LAYERS = {
    INPUT: ("Input", (), "cast", False),
    "stem": ("Conv2D", (INPUT,), "stem", True),
    "stem_relu": ("ReLU", ("stem",), "stem_relu", True),
    "reduce": ("Conv2D", ("stem_relu",), "reduce", True),
    "reduce_relu": ("ReLU", ("reduce",), "reduce_relu", True),
    "expand": ("Conv2D", ("reduce_relu",), "expand", True),
    "add": ("Add", ("expand", "stem_relu"), "add", True),
    "out": ("ReLU", ("add",), "out", True),
    "tail": ("Conv2D", ("out",), "tail", True),
    "tail_relu": ("ReLU", ("tail",), "tail_relu", True),
    "pool": ("GlobalAveragePooling2D", ("tail_relu",), "flat", False),
    "dense": ("Dense", ("pool",), "logits", False),
}
LOWERED = ("stem_relu", "reduce_relu", "out", "tail_relu")


def bottleneck() -> onnx.ModelProto:
    """uint8 pixels -> Conv 3x3, 1x1, 1x1 and the skip, 1x1, each with a ReLU -> mean, MatMul -> logits."""
    random = np.random.default_rng(5)

    def weight(outputs: int, inputs: int, side: int = 1) -> np.ndarray:
        gains = random.uniform(0.3, 3.0, (outputs, 1, 1, 1))  # channels of unlike ranges, for equalization
        return np.asarray(gains * random.normal(0.05, 1 / np.sqrt(inputs * side**2), (outputs, inputs, side, side)))

    constants = {
        "stem/w": weight(WIDE, 3, 3) / 60, "stem/b": random.normal(0.3, 0.5, WIDE),
        "reduce/w": weight(NARROW, WIDE), "reduce/b": random.normal(0.3, 0.5, NARROW),
        "expand/w": weight(WIDE, NARROW), "expand/b": random.normal(0, 0.5, WIDE),
        "tail/w": weight(NARROW, WIDE), "tail/b": random.normal(0, 0.5, NARROW),
        "dense/w": random.normal(0, 1, (NARROW, CLASSES)), "dense/b": random.normal(0, 1, CLASSES),
    }  # fmt: skip
    constants["dense/b"][0] = 6.67e-7  # FP16 has whole multiples of 2^-24 there
    nodes = [
        ("Cast", ["x"], "cast", {"to": 1}),
        ("Transpose", ["cast"], "nchw", {"perm": [0, 3, 1, 2]}),
        ("Conv", ["nchw", "stem/w", "stem/b"], "stem", {"pads": [1, 1, 1, 1]}),
        ("Relu", ["stem"], "stem_relu", {}),
        ("Conv", ["stem_relu", "reduce/w", "reduce/b"], "reduce", {}),
        ("Relu", ["reduce"], "reduce_relu", {}),
        ("Conv", ["reduce_relu", "expand/w", "expand/b"], "expand", {}),
        ("Add", ["expand", "stem_relu"], "add", {}),
        ("Relu", ["add"], "out", {}),
        ("Conv", ["out", "tail/w", "tail/b"], "tail", {}),
        ("Relu", ["tail"], "tail_relu", {}),
        ("GlobalAveragePool", ["tail_relu"], "pool", {}),
        ("Flatten", ["pool"], "flat", {}),
        ("MatMul", ["flat", "dense/w"], "dense", {}),
        ("Add", ["dense", "dense/b"], "logits", {}),
    ]
    values = {name: value.astype(np.float32) for name, value in constants.items()}
    shape = ("batch", SIDE, SIDE, 3)
    model = graph(nodes, values, shape, ("logits",), {"logits": ["batch", CLASSES]}, dtype=TensorProto.UINT8)
    for node in model.graph.node:
        node.name = f"{'dense' if node.output[0] == 'logits' else node.output[0]}/{node.op_type}"
    return model


@dataclass(frozen=True)
class Made:
    """Files as quantize writes them."""

    folder: Path
    source: onnx.ModelProto
    model: onnx.ModelProto
    scales: Scales
    weights: Mapping[str, RoundedWeight]

    @property
    def origin(self) -> Origin:
        names = ("model.onnx", "scales.json", "tensors.npz", "rounding.json")
        return Origin(SOURCE, *(self.folder / name for name in names))

    @property
    def keras(self) -> FakeKerasLayers:
        return FakeKerasLayers(self.source, LAYERS)

    def subject(self, model: onnx.ModelProto | None = None) -> Subject:
        return Subject("model.int8.onnx", "int8", model or self.model, read_changes(self.folder / "tensors.npz"))


def made_int8(
    folder: Path,
    base: str = "fp16",
    trunk: str = "fp32",
    kept: Mapping[str, Kept] | None = None,
    scale_of: Mapping[str, float] | None = None,
    moved: float = 0.0,
    corrected: bool = True,
) -> Made:
    """Write a bottleneck and its INT8 form into an empty folder.

    Args:
        folder: it.
        base: of the INT8 file.
        trunk: of the INT8 file.
        kept: nodes that stay in float.
        scale_of: tensor -> what its scale is multiplied by.
        moved: share of the weights whose codes second-order rounding is said to have moved by two.
        corrected: whether biases are corrected.
    """
    source, batches = bottleneck(), [PIXELS[:16]]
    images, statistics = collect_statistics(source, batches, measured_tensors(source))
    calibrated = calibrate(source, statistics, batches, images, [STRENGTHS[0]])[0]
    assert calibrated.factors
    scales = calibrated.scales("minmax", tuple(find_regions(calibrated.model).found), trunk)
    scales = replace(scales, scales={n: v * (scale_of or {}).get(n, 1.0) for n, v in scales.scales.items()})
    random = np.random.default_rng(9)
    weights = {name: _moved(weight, random, moved) for name, weight in calibrated.nearest(trunk).items()}
    errors = calibrated.bias_errors(scales, weights, batches) if corrected else []
    model = calibrated.corrected(errors, kept or ())
    int8 = quantize(model, scales, weights=weights, base=base, trunk=trunk, kept=kept)
    onnx.save(source, folder / "model.onnx")
    write_atomic(folder / "scales.json", scales.to_json())
    corrections = added_to_biases(source, model, calibrated.factors)
    write_changes(folder / "tensors.npz", calibrated.factors, int8.offsets, corrections)
    gains = dict.fromkeys(weights, 1.0) if moved else {}
    write_json(folder / "rounding.json", record_rounding(calibrated.model, weights, kept or (), gains))
    return Made(folder, source, int8.model, scales, weights)


def _moved(weight: RoundedWeight, random: np.random.Generator, share: float) -> RoundedWeight:
    chosen = (random.random(weight.codes.shape) < share) & (np.abs(weight.codes) < 125)
    return replace(weight, codes=np.where(chosen, weight.codes + 2, weight.codes).astype(np.int8))
