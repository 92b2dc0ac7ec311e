"""A network in the form that `benchmarks.int8.networks.make_network` writes, without Keras."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.int8.networks import CARD, IMAGES, ONNX, Network
from export.onnx_passes.file import save_model
from pipeline.artifacts.files import write_json
from tests import tiny_onnx


def network(**changes: object) -> Network:
    values = {
        "backbone": "resnet20",
        "weights": "trained",
        "input_size": tiny_onnx.SIZE,
        "parameters": 812,
        "classes": tiny_onnx.CLASSES,
        "images": {"train": 0, "scales": 24, "held_out": 8, "test": 40},
        "epochs": 1,
        "accuracy": 0.5,
    }
    return Network(**(values | changes))  # type: ignore[arg-type]


def write(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    model = tiny_onnx.classifier(more_convolutions=1)
    model.opset_import[0].version = 17  # as `export_keras` writes it
    save_model(model, folder / ONNX)
    labels = np.arange(40) % len(tiny_onnx.CLASSES)
    np.savez(
        folder / IMAGES,
        scales=tiny_onnx.pixels(24),
        held_out=tiny_onnx.pixels(8, seed=1),
        held_out_labels=labels[:8],
        test=tiny_onnx.pixels(40, seed=2),
        test_labels=labels,
    )
    write_json(folder / CARD, network(**changes))
    return folder
