"""Which tensor of an ONNX file holds the output of which Keras layer.

A layer is found by its values on a few images, whoever exported the file. Behind a fault no value is as it should be:
there the tensor of the first layer that is not found is decided by the names of nodes, where they are those of layers,
or else by the direction of its values. Its readers are then given Keras' values, so that the layers behind it are found
by theirs.
"""

from collections.abc import Mapping as Table
from dataclasses import dataclass

import numpy as np

from export.onnx_passes.graph import consumers
from export.onnx_passes.layer_names import keras_layer
from export.tensorrt.sidecar import Precision
from pipeline.verification.layers.keras_layers import INPUT, KerasLayer, KerasLayers
from pipeline.verification.layers.matching import Place, best_pairs, cosine_of, find_candidates
from pipeline.verification.layers.subject import FedSession, Subject

# SQNR between a tensor and the layer that it holds, in a file without a fault: rounding adds up from layer to layer.
_FOUND_DB: dict[Precision, float] = {"fp32": 60.0, "fp16": 30.0, "int8": 10.0}
_DIRECTION = 0.5  # cosine similarity of a faulty layer with what it should be
_CLOSER = 0.01  # by which that of a tensor behind has to be larger to be the layer's
_BEHIND = 3  # layers that may be folded into the one before them
NOT_FOUND = "no tensor of the file has its values"


@dataclass(frozen=True)
class MappedLayer:
    """A Keras layer and the tensor that holds its output.

    Args:
        name: Name of the layer, see `pipeline.verification.layers.keras_layers`.
        kind: Its class.
        inputs: Names of the mapped layers whose outputs it reads in Keras, through layers without a tensor; `INPUT`
            for the pixels.
        tensor: Name of the tensor.
        channels_first: Whether the tensor has its channels behind the batch, where Keras has them last.
        shape: Shape of the layer's output for one image, in Keras' layout.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    tensor: str
    channels_first: bool
    shape: tuple[int, ...]

    def in_file(self, value: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Return Keras' value (N, ...) in the layout of the tensor, with the shape of `like`."""
        return Place(self.tensor, self.channels_first).of_keras(value).reshape(len(value), *like.shape[1:])


@dataclass(frozen=True)
class Mapping:
    """The layers of a model and the tensors of a file.

    Args:
        layers: Those that have a tensor, in the order of the model.
        without_tensor: The others by name, each with the reason, such as "folded into conv1_bn".
    """

    layers: tuple[MappedLayer, ...]
    without_tensor: Table[str, str]


def map_layers(
    keras_layers: KerasLayers, subject: Subject, pixels: np.ndarray, source: Mapping | None = None
) -> Mapping:
    """Find the tensor of each layer.

    Args:
        keras_layers: The reference.
        subject: The file.
        pixels: uint8 (N, height, width, 3) RGB of a few images; as many as the file's batch where that is fixed.
        source: Of the file that this one was made from: tensors that still have their names keep their layers.
            Defaults to None.
    """
    reference = keras_layers.outputs(pixels)
    search = _Search(keras_layers.layers, reference, _equal_layers(keras_layers, reference, pixels), subject, pixels)
    if source is not None:
        search.keep(source)
    search.run()
    return search.result()


class _Search:
    """The layers found so far.

    Args:
        layers: Layers of the model by name, in an order in which each follows its inputs.
        reference: Their outputs by name.
        same: Layers that pass on the values of an earlier one, with that one.
        subject: The file.
        pixels: The images.
    """

    def __init__(
        self,
        layers: Table[str, KerasLayer],
        reference: Table[str, np.ndarray],
        same: Table[str, str],
        subject: Subject,
        pixels: np.ndarray,
    ) -> None:
        self._layers, self._reference, self._subject = layers, reference, subject
        self._inputs = subject.inputs(pixels)
        self._same = same
        self._readers: dict[str, list[str]] = {name: [] for name in layers}
        for layer in layers.values():
            for name in layer.inputs:
                self._readers[name].append(layer.name)
        self._last = [*layers][-1]
        self._places: dict[str, Place] = {}
        self._shapes: dict[str, np.ndarray] = {}  # a value of each place, for its shape
        self._passed: set[str] = set()  # layers that are looked for no more
        self._written_by = {
            name: keras_layer(node.name)
            for node in subject.model.graph.node
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
            for name in node.output
        }
        self._nodes_behind = consumers(subject.model.graph)
        known = sum(name in layers for name in self._written_by.values())
        self._named = 2 * known > len(self._written_by)
        self._threshold = _FOUND_DB[subject.precision]

    def keep(self, source: Mapping) -> None:
        """Take over the places of another file; a layer whose tensor has another name here is found by its values."""
        values = self._values({layer.shape for layer in self._layers.values()})
        renamed: dict[str, np.ndarray] = {}
        for layer in source.layers:
            if layer.tensor in values and values[layer.tensor].size == self._reference[layer.name].size:
                self._place(layer.name, Place(layer.tensor, layer.channels_first), values)
            else:
                renamed[layer.name] = self._reference[layer.name]
        moved_input = renamed.pop(INPUT, None) is not None
        others = {name: value for name, value in values.items() if name not in self._shapes}
        for name, place in best_pairs(renamed, others, self._threshold).items():
            self._place(name, place, values)
        if moved_input:  # else what is wrong before it is blamed on the first layer
            self._decide_input(values)

    def run(self) -> None:
        """Find layers until every one is found, or nothing more can be decided."""
        while missing := self._missing():
            values = self._values({self._layers[name].shape for name in missing})
            wanted = {name: self._reference[name] for name in missing}
            if pairs := best_pairs(wanted, values, self._threshold):
                for name, place in pairs.items():
                    self._place(name, self._last_own(name, place, values), values)
            elif not self._decide(missing, values):
                break
        if self._named:
            self._place_named()

    def result(self) -> Mapping:
        """Return what was found."""
        missing = set(self._missing())
        layers, without = [], {}
        for name, layer in self._layers.items():
            if name in self._places:
                place = self._places[name]
                sources = tuple(dict.fromkeys(s for source in layer.inputs for s in self._sources(source)))
                layers.append(MappedLayer(name, layer.kind, sources, place.tensor, place.channels_first, layer.shape))
            elif name in self._same:
                without[name] = f"has the values of {self._same[name]}"
            else:
                without[name] = NOT_FOUND if name in missing else f"folded into {self._holder(name)}"
        return Mapping(tuple(layers), without)

    def _last_own(self, name: str, place: Place, values: Table[str, np.ndarray]) -> Place:
        """Return the last tensor with a layer's values among those of its own nodes; the given one if it has none."""
        own = [tensor for tensor in values if self._named and self._written_by[tensor] == name]
        for tensor in reversed(own):
            if last := best_pairs({name: self._reference[name]}, {tensor: values[tensor]}, self._threshold):
                return last[name]
        return place

    def _place(self, name: str, place: Place, values: Table[str, np.ndarray]) -> None:
        self._places[name] = place
        self._shapes[place.tensor] = values[place.tensor]

    def _values(self, shapes: set[tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Return the tensors that may hold a layer of one of these shapes; found ones are given to their readers."""
        fed = {place.tensor: place.of_keras(self._reference[name]) for name, place in self._places.items()}
        tensors = [t for t in find_candidates(self._subject.model, shapes) if t not in fed]
        if not tensors:
            return {}
        session = FedSession(self._subject.model, list(fed), tensors)
        given = {
            tensor: self._subject.file_value(tensor, value.reshape(self._shapes[tensor].shape))
            for tensor, value in fed.items()
        }
        found = session.run(self._inputs, given)
        return {name: self._subject.keras_value(name, value.astype(np.float32)) for name, value in found.items()}

    def _missing(self) -> list[str]:
        """Return the layers that are not found, and are in no layer behind them that is, in order."""
        covered: set[str] = set()
        for name in reversed([*self._layers]):
            readers = self._readers[name]
            held = name in self._places or self._same.get(name) in self._places or name in self._passed
            if held or (name != self._last and all(reader in covered for reader in readers)):
                covered.add(name)
        return [name for name in self._layers if name not in covered and name not in self._same]

    def _decide(self, missing: list[str], values: Table[str, np.ndarray]) -> bool:
        """Decide the place of the first missing layer, or of one that follows it; return whether that could be done."""
        first = missing[0]
        if first == INPUT:
            self._decide_input(values)
            return True
        own = [name for name in values if self._written_by[name] == first]
        chain = self._chain(first, set(missing))
        # Where no node has its name, it may be one that was put in without a name.
        nameless = [name for name in values if self._written_by[name] not in self._layers]
        tensors = (own or nameless) if self._named else list(values)
        if self._named or first == self._last:  # a layer of several nodes ends with the last one
            tensors = tensors[::-1]
        for tensor in tensors:
            fits = {
                (name, place): cosine
                for name in chain
                for place, cosine in cosine_of(self._reference[name], tensor, values[tensor])
            }
            if fits and ((self._named and own) or max(fits.values()) >= _DIRECTION):
                # Where nothing is finite, the last layer of the chain: those before it are folded into the node.
                name, place = max(fits, key=lambda pair: (fits[pair], chain.index(pair[0])))
                closest = place if self._named else self._closer(name, place, fits[name, place], values)
                self._place(name, closest, values)
                return True
        if self._named:  # a layer without nodes, whose weights are in another one
            self._passed.add(first)
        return self._named

    def _closer(self, name: str, place: Place, cosine: float, values: Table[str, np.ndarray]) -> Place:
        """Return the place with the direction closest to a layer's, of one and those behind that one node reads."""
        tensor = place.tensor
        while len(readers := self._nodes_behind.get(tensor, [])) == 1 and (tensor := readers[0].output[0]) in values:
            for behind, fit in cosine_of(self._reference[name], tensor, values[tensor]):
                if fit > cosine + _CLOSER:
                    place, cosine = behind, fit
        return place

    def _decide_input(self, values: Table[str, np.ndarray]) -> None:
        """Place the pixels, whose values no tensor has, by the names of nodes; or look for them no more."""
        own = [name for name in values if self._written_by[name] == "preprocessing"]
        if own and not best_pairs({INPUT: self._reference[INPUT][..., ::-1]}, values, self._threshold):
            self._place(INPUT, Place(own[-1], False), values)
        elif not own and (found := best_pairs({INPUT: self._reference[INPUT]}, values, self._threshold)):
            self._place(INPUT, found[INPUT], values)
        else:
            self._passed.add(INPUT)  # the order of the channels is in the weights of the first layer

    def _place_named(self) -> None:
        """Place layers that were taken for folded ones, as the layer behind them is close enough, by their nodes."""
        taken = {self._written_by[tensor] for tensor in self._shapes}
        free = {name for name in self._written_by.values() if name in self._layers} - taken - {*self._same}
        if free := free - {*self._places}:
            values = self._values({self._layers[name].shape for name in free})
            for tensor, value in reversed(values.items()):
                name = self._written_by[tensor]
                if name in free and name not in self._places and value.size == self._reference[name].size:
                    fits = dict(cosine_of(self._reference[name], tensor, value))
                    if fits:
                        self._place(name, max(fits, key=lambda place: fits[place]), values)

    def _chain(self, first: str, missing: set[str]) -> list[str]:
        """Return a layer and those behind it whose values its tensor may hold."""
        chain = [first]
        named = set(self._written_by.values())
        while len(chain) <= _BEHIND and len(readers := self._readers[chain[-1]]) == 1:
            (name,) = readers
            if name not in missing or (self._named and name in named):
                break
            chain.append(name)
        return chain

    def _sources(self, name: str) -> list[str]:
        """Return the mapped layers that give a layer's values; `INPUT` if they are computed of the pixels."""
        name = self._same.get(name, name)
        if name in self._places or name == INPUT:
            return [name]
        return [source for inner in self._layers[name].inputs for source in self._sources(inner)]

    def _holder(self, name: str) -> str:
        """Return the first layer behind another one that has a tensor."""
        waiting = [name]
        for current in waiting:
            for reader in self._readers[current]:
                if reader in self._places:
                    return reader
                waiting.append(reader)
        return next(iter(self._layers))


def _equal_layers(keras_layers: KerasLayers, reference: Table[str, np.ndarray], pixels: np.ndarray) -> dict[str, str]:
    """Return the layers whose values are those of an earlier one, such as a Dropout or a Flatten, with that one.

    A ReLU of values that happen to be positive is none: other images, unlike any photo, have to give equal values too.
    """
    firsts: dict[tuple[int, bytes], str] = {}
    same: dict[str, str] = {}
    for name, value in reference.items():
        first = firsts.setdefault((value.size, value.tobytes()), name)
        if first != name:
            same[name] = first
    if not same:
        return same
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape).astype(np.uint8)
    for unlike in (255 - pixels, noise, np.where(noise < 128, 0, 255).astype(np.uint8)):
        values = keras_layers.outputs(unlike)
        same = {name: first for name, first in same.items() if values[name].tobytes() == values[first].tobytes()}
    return same
