"""A deployment of the small ONNX classifier, and photos, for tests of what answers with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image

from export.preprocessing import PreprocessingSpec
from pipeline.data.decode import DecodeSpec
from pipeline.inference.classify import Settings
from pipeline.inference.deployment import Deployment
from pipeline.models.model_card import ModelCard
from pipeline.serving.select_model import Selection
from tests import tiny_onnx

CARD = ModelCard(
    tiny_onnx.CLASSES, PreprocessingSpec.from_mode("unit"), DecodeSpec((tiny_onnx.SIZE,) * 2, "stretch"), "softmax"
)


def make_deployment(folder: Path, name: str = "tiny", **settings: Any) -> Deployment:
    """The small classifier as a file below a folder, and what answers with it.

    Args:
        folder: where ``model.onnx`` is written.
        name: of the recipe.
        **settings: of `Settings`.
    """
    model = _by_colour(tiny_onnx.classifier())
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in CARD.metadata().items()})
    path = folder / "model.onnx"
    onnx.save(model, path)
    choice = Selection("export/model.onnx", path, "onnxruntime", "fp32", "pass")
    how = Settings(**{"batch_size": 4, "top_k": 2} | settings)
    return Deployment(name, choice, CARD, how, choice.digest(), threads=1)


def _by_colour(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights by which the strongest colour decides, and the last class answers where there is none."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    values = {name: np.zeros_like(numpy_helper.to_array(tensor)) for name, tensor in tensors.items()}
    for channel in range(3):
        values["kernel"][channel, channel, 1, 1] = 1
        values["dense"][channel, :3] = -0.01
        values["dense"][channel, channel] = 0.02
    values["dense_bias"][3] = 0.3
    for name, value in values.items():
        tensors[name].CopyFrom(numpy_helper.from_array(value, name))
    return model


def make_photos(folder: Path, number: int = 8) -> list[Path]:
    """Colourful noise as PNG files of several sizes; answers differ between them."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    paths = []
    for index in range(number):
        tint = random.integers(0, 256, 3)
        noise = random.integers(0, 60, (20 + index, 24, 3))
        path = folder / f"{index:03d}.png"
        Image.fromarray(((tint + noise) % 256).astype(np.uint8)).save(path)
        paths.append(path)
    return paths
