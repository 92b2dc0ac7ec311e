"""One layer of a file on its own: its nodes, fed with Keras' values, and what they should give."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from export.errors import ProjectError
from export.onnx_passes.cut import extract
from export.onnx_passes.graph import copy_model
from export.onnx_passes.layer_names import keras_layer
from export.ort_session import open_session
from export.words import count, listed
from pipeline.artifacts.tensor_changes import UNCHANGED, TensorChange
from pipeline.verification.explain.fit import difference_in_words, fit_db
from pipeline.verification.explain.twin import in_fp32, without_rounding
from pipeline.verification.layers.compare import LayerValues
from pipeline.verification.layers.keras_layers import KerasLayer
from pipeline.verification.layers.mapping import MappedLayer
from pipeline.verification.layers.mapping import Mapping as LayerMapping
from pipeline.verification.layers.matching import layouts
from pipeline.verification.layers.subject import Subject

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

# SQNR in dB from which a layer fed with Keras' values gives Keras' output, with nothing rounded but its weights.
AGREES: Mapping[str, float] = {"fp32": 70.0, "fp16": 45.0, "int8": 22.0}
GAINS = 10.0  # dB that a repair has to bring


@dataclass(frozen=True, eq=False)
class Part:
    """A layer of a file.

    Attributes:
        layer: The Keras layer and its tensor.
        model: Its nodes alone, in FP32 and without the rounding of activations.
        rounded: Its nodes as the file has them.
        inputs: Keras' values for the inputs of `model`, by name, as its tensors hold them.
        reference: What it should give, as Keras does.
        own: What it gives, as Keras would.
        precision: Of the file.
        mapping: Of all layers of the file.
        network: Keras' model.
        values: Keras' outputs of all layers, by name.
        changes: What the file's tensors hold in place of Keras' values, see `Subject`.
        folded: Layers that are folded into this one, in the order of the model.
    """

    layer: MappedLayer
    model: ModelProto
    rounded: ModelProto
    inputs: Mapping[str, np.ndarray]
    reference: np.ndarray
    own: np.ndarray
    precision: str
    mapping: LayerMapping
    network: keras.Model
    values: Mapping[str, np.ndarray]
    changes: Mapping[str, TensorChange]
    folded: tuple[str, ...]

    @property
    def change(self) -> TensorChange:
        """Return what its output holds in place of Keras' values."""
        return self.changes.get(self.layer.tensor, UNCHANGED)

    @property
    def error_db(self) -> float:
        """Return the SQNR of the layer in dB."""
        return fit_db(self.reference, self.own)

    @property
    def nodes(self) -> list[NodeProto]:
        """Return the nodes, in order."""
        return list(self.model.graph.node)

    @property
    def operators(self) -> str:
        """Return the operators in words: "Conv, Relu"."""
        return listed(dict.fromkeys(node.op_type for node in self.nodes if node.op_type != "Cast"))

    def repaired(self, model: ModelProto, inputs: Mapping[str, np.ndarray] | None = None) -> float:
        """Return the SQNR in dB of a changed model, or with other inputs; -inf where it does not run."""
        try:
            return fit_db(self.reference, self.change.keras_value(run_part(model, inputs or self.inputs)))
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            log.debug("a repair of %s cannot run: %s", self.layer.name, error)
            return -np.inf

    def agrees(self, db: float) -> bool:
        """Return whether a repair makes the layer right."""
        return db >= AGREES[self.precision] and db >= self.error_db + GAINS

    def repair_in_words(self, what: str, db: float) -> str:
        """Return the evidence of a repair as a sentence, see `fit.evidence_of`."""
        return (
            f"Fed with Keras' values, the layer's output differs from Keras' by {difference_in_words(self.error_db)}; "
            f"{what}, by {difference_in_words(db)}."
        )

    def in_file(self, name: str, tensor: str) -> np.ndarray:
        """Return Keras' output of a layer as it would stand in place of an input that has as many values."""
        layer = next(layer for layer in self.mapping.layers if layer.tensor == tensor)
        value = layer.in_file(self.values[name], self.inputs[tensor])
        return self.changes.get(tensor, UNCHANGED).file_value(value)

    def keras_layers(self) -> list[Any]:
        """Return the layer in Keras, and those that are folded into it, in the order of the model."""
        wanted = [bare_name(name) for name in (*self.folded, self.layer.name)]
        return [layer for name in wanted for layer in _layers_of(self.network) if layer.name == name]

    def layer_of(self, node: NodeProto) -> str:
        """Return the Keras layer of a node where its name says so; else the layer of the part."""
        name = keras_layer(node.name)
        return name if name in (*self.folded, self.layer.name) else self.layer.name

    @property
    def weighted_layer(self) -> str:
        """Return the Keras layer of the node with the weights; the layer of the part where there is none."""
        weighted = [node for node in self.nodes if node.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose")]
        return self.layer_of(weighted[-1]) if len(weighted) == 1 else self.layer.name


def make_part(
    subject: Subject,
    mapping: LayerMapping,
    name: str,
    found: LayerValues,
    network: keras.Model,
    values: Mapping[str, np.ndarray],
    structure: Mapping[str, KerasLayer],
) -> Part:
    """Return a layer as a part, see `Part`.

    Args:
        subject: The file.
        mapping: Tensors of its layers.
        name: The layer.
        found: Its values.
        network: Keras' model.
        values: Keras' outputs of all layers, by name.
        structure: All layers of Keras' model.
    """
    layer = next(layer for layer in mapping.layers if layer.name == name)
    norm = _folded_norm(layer, subject, mapping, structure)
    model = extract(subject.model, list(found.inputs), [layer.tensor])
    plain = without_rounding(model) if subject.precision == "int8" else in_fp32(model)
    inputs = {name: _as_floats(value) for name, value in found.inputs.items()}
    own = subject.keras_value(layer.tensor, run_part(plain, inputs))
    reference = found.reference.astype(np.float32)
    if norm is not None:  # folded into a Conv that is so wrong that its tensor was taken for that of the Conv alone
        reference = np.asarray(layer.in_file(values[norm], own), np.float32)
        layer = replace(layer, name=norm, kind="BatchNormalization")
    folded = [name] if norm is not None else []
    folded += [other for other, why in mapping.without_tensor.items() if why == f"folded into {name}"]
    order = [*structure]
    return Part(
        layer,
        plain,
        model,
        inputs,
        reference,
        own,
        subject.precision,
        mapping,
        network,
        values,
        subject.changes,
        tuple(sorted((n for n in folded if n != layer.name), key=order.index)),
    )


def narrowed(part: Part) -> Part:
    """Return the beginning of a part where that alone is wrong, as what it should give is known: else the part itself.

    Between a layer's tensor and the next one may stand nodes of an earlier layer: one that was put in behind it, or all
    those of a layer that is so wrong that no tensor was taken for its own. If the part is right where the output of
    such nodes is replaced by that of the earlier layer, they are at fault.
    """
    before = [layer for layer in part.mapping.layers if layer.tensor in part.inputs and layer.name in part.values]
    known = [(name, part.layer) for name in part.folded] + [(layer.name, layer) for layer in before]
    for node in part.nodes[:-1]:
        tensor = node.output[0]
        try:
            own = run_part(extract(part.model, list(part.inputs), [tensor]), part.inputs)
            rest = extract(part.model, [*part.inputs, tensor], [part.layer.tensor])
        except Exception:  # such as an output that is no float, which is no layer's: ONNX Runtime has no public base
            continue
        for name, like in known:
            for place, turned in layouts(part.values[name], tensor, own):
                value = np.asarray(turned.reshape(own.shape), np.float32)
                # What was put in behind a layer holds its values as that layer's tensor does.
                known_as = tensor if tensor in part.changes or like is part.layer else like.tensor
                change = part.changes.get(known_as, UNCHANGED)
                if part.agrees(part.repaired(rest, {**part.inputs, tensor: change.file_value(value)})):
                    found = replace(like, name=name, tensor=tensor, channels_first=place.channels_first)
                    changed = replace(part, changes={**part.changes, tensor: change})
                    return _beginning(changed, found, change.keras_value(own), value)
    return part


def _beginning(part: Part, place: MappedLayer, own: np.ndarray, value: np.ndarray) -> Part:
    """Return the nodes of a part up to a tensor as a part of their own.

    Args:
        part: The part.
        place: The layer whose values the tensor should have.
        own: What it has, as Keras would.
        value: What it should have.
    """
    model, rounded = (extract(one, list(part.inputs), [place.tensor]) for one in (part.model, part.rounded))
    inputs = {name: part.inputs[name] for name in [info.name for info in model.graph.input]}
    kind = next((type(layer).__name__ for layer in _layers_of(part.network) if layer.name == bare_name(place.name)), "")
    return replace(
        part,
        layer=replace(place, kind=kind),
        model=model,
        rounded=rounded,
        inputs=inputs,
        reference=value,
        own=own,
        folded=part.folded[: part.folded.index(place.name)] if place.name in part.folded else (),
    )


def _folded_norm(
    layer: MappedLayer, subject: Subject, mapping: LayerMapping, structure: Mapping[str, KerasLayer]
) -> str | None:
    """Return the BatchNorm without a tensor that alone reads a layer; None if the file has nodes for it."""
    readers = [other for other in structure.values() if layer.name in other.inputs]
    if len(readers) != 1 or readers[0].kind != "BatchNormalization" or readers[0].name not in mapping.without_tensor:
        return None
    has_nodes = any(node.op_type == "BatchNormalization" for node in subject.model.graph.node)
    return None if has_nodes else readers[0].name


def run_part(model: ModelProto, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the output of a part as FP32."""
    session = open_session(model, exact=True, spinning=False, log_severity=4)
    names = {item.name for item in session.get_inputs()}
    (output,) = session.run(None, {name: value for name, value in inputs.items() if name in names})
    return np.asarray(output, np.float32)


def _as_floats(value: np.ndarray) -> np.ndarray:
    return value if value.dtype == np.uint8 else value.astype(np.float32)


def bare_name(name: str) -> str:
    """Return the name of a Keras layer without the models around it and the number of its call."""
    return name.split(" (")[0].split("/")[-1]


def _layers_of(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _layers_of(layer)


def with_tensor(model: ModelProto, name: str, values: np.ndarray) -> ModelProto:
    """Return the model with other values of an initializer.

    Raises:
        ProjectError: There is no such initializer.
    """
    result = copy_model(model)
    for tensor in result.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
            return result
    raise ProjectError(f"Expected an initializer {name!r}. Received: none of that name.")


def weights_of(part: Part) -> dict[str, np.ndarray]:
    """Return the float initializers of a part with at least 2 values, by name."""
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in part.model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 1
    }


def outputs_in_words(number: int, of: int) -> str:
    """Return a number of channels in words: "3 of 64 channels"."""
    return f"{number:,} of {count(of, 'channel')}"
