"""Wrong resizing: of files, by a product that decodes otherwise than Keras, and of activations, in the graph."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from PIL import Image, ImageOps

from benchmarks.faults.graph_edits import set_values, values
from benchmarks.faults.planted import Change, Edit, Plant, Planted, draw
from benchmarks.faults.specimen import Specimen
from export.onnx_passes.graph import attribute
from export.onnx_passes.layer_names import keras_layer
from export.onnx_passes.repairs import set_attribute
from pipeline.artifacts.paths import KERAS
from pipeline.data.decode import Decoded, DecodeSpec
from pipeline.data.image_files import LARGEST_FILE
from pipeline.data.resize import resize_image

Wrong = Literal["nearest", "bicubic", "lanczos", "other mode"]
_LAYERS = ("UpSampling2D", "Resizing")


@dataclass(frozen=True)
class WrongDecoding(DecodeSpec):
    """A `DecodeSpec` whose files are resized wrongly.

    Attributes:
        wrong: the filter, or "other mode": crop where it says stretch, and stretch elsewhere.
    """

    wrong: Wrong = "nearest"

    def decode(
        self,
        source: Path | str | bytes | np.ndarray,
        *,
        keep_damaged: bool = False,
        largest_file: int = LARGEST_FILE,
    ) -> Decoded:
        """Decode and resize one image, wrongly."""
        if isinstance(source, np.ndarray):
            opened = Image.fromarray(source)
        else:
            opened = Image.open(BytesIO(source) if isinstance(source, bytes) else source)
        image = ImageOps.exif_transpose(opened).convert("RGB")
        if self.wrong == "other mode":
            pixels = resize_image(image, self.size, "crop" if self.resize == "stretch" else "stretch")
        else:
            small = image.resize(self.size[::-1], Image.Resampling[self.wrong.upper()])
            pixels = np.asarray(small, np.uint8)
        return Decoded(pixels, image.width, image.height)


def _decoded(wrong: Wrong) -> Plant:
    def plant(specimen: Specimen, random: np.random.Generator) -> Planted:
        right = specimen.card.decode
        spec = WrongDecoding(**{item.name: getattr(right, item.name) for item in fields(right)}, wrong=wrong)
        return Planted(Change(f"files resized by {wrong}", ("resize",)), "", decode=spec)

    return plant


def _enlarging(specimen: Specimen) -> tuple[str, ...]:
    """Return the names of the layers of the Keras model that resize."""
    with zipfile.ZipFile(specimen.path(KERAS)) as archive:
        config = json.loads(archive.read("config.json"))
    found, waiting = [], [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if item.get("class_name") in _LAYERS:
                found.append(str(item["config"]["name"]))
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return tuple(found)


def _resize(model: onnx.ModelProto, random: np.random.Generator) -> onnx.NodeProto:
    nodes: list[onnx.NodeProto] = [node for node in model.graph.node if node.op_type == "Resize"]
    return draw(random, nodes, "a layer that resizes")


def other_interpolation(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Exchange nearest and linear in a Resize node."""
    node = _resize(model, random)
    mode = "linear" if attribute(node, "mode", b"nearest") == b"nearest" else "nearest"
    set_attribute(node, "mode", mode)
    return Change(f"a Resize by {mode}", ("resize",), (keras_layer(node.name), *_enlarging(specimen)))


def other_corners(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Let a Resize node place its pixels otherwise."""
    node = _resize(model, random)
    known = attribute(node, "coordinate_transformation_mode", b"half_pixel").decode()
    other = draw(random, [mode for mode in ("align_corners", "asymmetric") if mode != known], "")
    set_attribute(node, "coordinate_transformation_mode", other)
    return Change(f"a Resize with {other}", ("resize",), (keras_layer(node.name), *_enlarging(specimen)))


def other_matrix(model: onnx.ModelProto, specimen: Specimen, random: np.random.Generator) -> Change:
    """Resize by the nearest pixel where a product resizes linearly."""
    found = [
        tensor.name for tensor in model.graph.initializer if tensor.name.endswith(("rows/matrix", "columns/matrix"))
    ]
    name = draw(random, found, "a layer that resizes by a product")
    matrix = values(model, name)
    set_values(model, name, np.eye(matrix.shape[1])[matrix.argmax(axis=1)])
    return Change("a resizing by the nearest pixel", ("resize",), (keras_layer(name), *_enlarging(specimen)))


DECODINGS: Mapping[str, Plant] = {
    "files, nearest": _decoded("nearest"),
    "files, bicubic": _decoded("bicubic"),
    "files, lanczos": _decoded("lanczos"),
    "files, other mode": _decoded("other mode"),
}
EDITS: Mapping[str, Edit] = {
    "interpolation": other_interpolation,
    "corners": other_corners,
    "matrix": other_matrix,
}
