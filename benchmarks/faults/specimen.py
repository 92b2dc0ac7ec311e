"""Artifacts that faults are planted into, and what a fault needs to know of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.calibration import collect_statistics
from export.files import write_atomic
from export.fp16.convert import to_half, unfit_for_fp16
from export.int8.calibrated import calibrate
from export.int8.placement import Kept, measured_tensors
from export.int8.qdq import quantize
from export.int8.regions import find_regions
from export.int8.rounding_record import record_rounding
from export.onnx_passes.file import load_model, save_model
from export.records import to_json
from export.tensorrt.sidecar import read_sidecar, sidecar_path
from pipeline.artifacts.archives import read_arrays
from pipeline.artifacts.array_rows import array_forms, read_rows
from pipeline.artifacts.engines import engines
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.paths import CARD, KERAS, ONNX, REFERENCE, ROUNDING, SCALES, TENSORS, Artifacts
from pipeline.artifacts.tensor_changes import write_changes
from pipeline.models.model_card import ModelCard, read_card

if TYPE_CHECKING:
    import onnx

METHOD = "mse"  # of the scales of INT8 files that are made again
_COPIED = ("train", "export", "quantize", "build", "verify")


@dataclass(frozen=True)
class Normalisation:
    """A BatchNorm of the Keras model that the export folded into the layer before it.

    Attributes:
        name: of its layer.
        gamma: float64 (C,); ones where it has none.
        beta: float64 (C,); zeros where it has none.
        mean: float64 (C,), of the training.
        variance: float64 (C,), of the training.
        epsilon: added to the variance.
    """

    name: str
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float


@dataclass
class Specimen:
    """A folder of artifacts, to change.

    Attributes:
        folder: as ``artifacts/<recipe>/``.
        calibration: images that give the scales of an INT8 file that is made again, uint8 (N, height, width, 3).
        images: number of test images that are looked at, the first ones. Defaults to None: all.
        normalisations_of: BatchNorms by sha256 of the Keras model, as far as they were read.
    """

    folder: Path
    calibration: np.ndarray
    images: int | None = None
    normalisations_of: dict[str, dict[str, Normalisation]] = field(default_factory=dict, repr=False)

    def path(self, name: str) -> Path:
        """Return the path of an artifact."""
        return self.folder / name

    def load(self, name: str) -> onnx.ModelProto:
        """Read an ONNX file."""
        return load_model(self.folder / name)

    def save(self, name: str, model: onnx.ModelProto) -> None:
        """Write an ONNX file; engines of the former one count as built again from this one."""
        path = self.folder / name
        former = sha256_file(path) if path.is_file() else ""
        save_model(model, path)
        for plan in engines(Artifacts(self.folder)):
            if read_sidecar(self.folder / plan).onnx_sha256 == former:
                set_source(self.folder / plan, sha256_file(path))

    @cached_property
    def card(self) -> ModelCard:
        """The model's card."""
        return read_card(self.folder / CARD)

    @cached_property
    def reference(self) -> dict[str, np.ndarray]:
        """The arrays ``pixels``, ``labels`` and ``logits`` of the test images."""
        path, names = self.folder / REFERENCE, ("pixels", "labels", "logits")
        if self.images is None:
            return read_arrays(path, names)
        images = range(min(self.images, array_forms(path, names)["labels"].shape[0]))
        return {name: read_rows(path, name, images) for name in names}

    @property
    def normalisations(self) -> dict[str, Normalisation]:
        """BatchNorms by the name of the layer that they follow."""
        digest = sha256_file(self.folder / KERAS)
        if digest not in self.normalisations_of:
            self.normalisations_of[digest] = read_normalisations(self.folder / KERAS)
        return self.normalisations_of[digest]

    def copy(self, folder: Path) -> Specimen:
        """Return a copy in another folder, to change; what was read of the Keras model is shared."""
        for stage in _COPIED:
            if (self.folder / stage).is_dir():
                shutil.copytree(self.folder / stage, folder / stage)
        return Specimen(folder, self.calibration, self.images, self.normalisations_of)

    def remake(
        self, precisions: tuple[str, ...] = ("fp16", "int8"), calibrated_on: onnx.ModelProto | None = None
    ) -> None:
        """Make the FP16 and the INT8 file again from the FP32 file, by the simplest way that quantize has.

        Args:
            precisions: which of the two. Defaults to both.
            calibrated_on: FP32 model whose activations give the scales. Defaults to None: the file itself.
        """
        model = self.load(ONNX["fp32"])
        source = model if calibrated_on is None else calibrated_on
        batches = [self.calibration[start : start + 8] for start in range(0, len(self.calibration), 8)]
        images, statistics = collect_statistics(source, batches, measured_tensors(source))
        unfit = unfit_for_fp16(source, {name: channels.limit for name, channels in statistics.items()})
        if "fp16" in precisions:
            self.save(ONNX["fp16"], to_half(model, keep=tuple(unfit)))
        if "int8" in precisions:
            calibrated = calibrate(source, statistics, batches, images, [None])[0]
            scales = calibrated.scales(METHOD, tuple(find_regions(source).found))
            kept = {name: Kept("fp32", why) for name, why in unfit.items()}
            weights = replace(calibrated, model=model).nearest()
            int8 = quantize(model, scales, weights=weights, kept=kept)
            self.save(ONNX["int8"], int8.model)
            write_changes(self.folder / TENSORS, {}, int8.offsets)
            write_atomic(self.folder / SCALES, scales.to_json())
            write_json(self.folder / ROUNDING, to_json(record_rounding(model, weights, kept)))


def set_source(plan: Path, digest: str) -> None:
    """Let an engine's sidecar say that it was built from the ONNX file of this sha256."""
    path = sidecar_path(plan)
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"onnx_sha256": digest})


def read_normalisations(path: Path) -> dict[str, Normalisation]:
    """Return the BatchNorms of a Keras model by the name of the layer that each of them follows."""
    from pipeline.keras_files.load import load_classifier

    found = {}
    for layer in load_classifier(path)._flatten_layers(include_self=False):
        if type(layer).__name__ == "BatchNormalization":
            mean = np.asarray(layer.moving_mean, np.float64)
            gamma = np.ones_like(mean) if layer.gamma is None else np.asarray(layer.gamma, np.float64)
            beta = np.zeros_like(mean) if layer.beta is None else np.asarray(layer.beta, np.float64)
            variance = np.asarray(layer.moving_variance, np.float64)
            for node in layer._inbound_nodes:
                for parent in node.parent_nodes:
                    found[parent.operation.name] = Normalisation(
                        layer.name, gamma, beta, mean, variance, float(layer.epsilon)
                    )
    return found
