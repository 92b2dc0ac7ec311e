"""The output of every layer of a Keras model, those of nested models included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from export.preprocessing import PreprocessingSpec
from pipeline.models.model_card import ModelCard
from pipeline.terminal.console import start_tensorflow

if TYPE_CHECKING:
    import keras

INPUT: Final = "input"  # stands for the preprocessed pixels where layers are named


@dataclass(frozen=True)
class KerasLayer:
    """One call of a layer.

    Args:
        name: Name of the layer; of its second call with " (call 2)"; behind the names of the models that it is in where
            another layer has its name.
        kind: Class of the layer, such as "Conv2D".
        inputs: Names of the layers whose outputs it reads; `INPUT` for the pixels.
        shape: Shape of its output for one image, in Keras' layout.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]


class KerasLayers:
    """Runs a Keras model, as it is at inference, and returns the output of each of its layers.

    Attributes:
        layers: The preprocessed pixels under the name `INPUT`, then each layer, in the order of the model. A layer with
            several outputs has a further entry for each, such as "split (output 2)".

    Args:
        model: One input, which is preprocessed pixels, and one output: the last value that is compared.
        preprocessing: Applied to the pixels in numpy.
    """

    def __init__(self, model: keras.Model, preprocessing: PreprocessingSpec) -> None:
        self._model, self._preprocessing = model, preprocessing
        _, height, width, channels = model.inputs[0].shape
        trace = _Trace()
        trace.start(np.zeros((1, height, width, channels), np.float32))
        trace.run(self._model, [trace.calls[0].value], ())
        names = trace.unique_names()
        self.layers: Mapping[str, KerasLayer] = {
            name: KerasLayer(
                name,
                "Input" if call.operation is None else type(call.operation).__name__,
                tuple(dict.fromkeys(names[index] for index in call.inputs)),
                tuple(call.value.shape[1:]),
            )
            for name, call in zip(names, trace.calls)
        }

    def outputs(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the output of each of `layers`, float32 (N, ...) in Keras' layout.

        All of them are in memory at once, so give as few images as `bytes_per_image` allows.

        Args:
            pixels: uint8 (N, height, width, 3) RGB.
        """
        trace = _Trace()
        trace.start(self._preprocessing.apply(pixels))
        trace.run(self._model, [trace.calls[0].value], ())
        return {name: np.asarray(call.value, np.float32) for name, call in zip(self.layers, trace.calls)}

    @property
    def bytes_per_image(self) -> int:
        """Size of the outputs of all layers for one image."""
        return 4 * sum(int(np.prod(layer.shape)) for layer in self.layers.values())


def open_keras_layers(path: Path, card: ModelCard, allow: Sequence[str]) -> KerasLayers:
    """Return the layers of a model file, up to its logits.

    Args:
        path: The model file.
        card: The model's card.
        allow: Names of parts of the model that may run code.

    Raises:
        ProjectError: The file is refused, or it does not end as a classifier.
    """
    start_tensorflow()
    from export.from_keras.logits import logits_model
    from pipeline.keras_files.load import load_classifier

    return KerasLayers(logits_model(load_classifier(path, allow), card.output), card.preprocessing)


@dataclass(frozen=True)
class _Call:
    """One output of one call of an operation; the pixels are a call without an operation."""

    name: str
    scope: tuple[str, ...]  # names of the models around it
    operation: Any
    inputs: tuple[int, ...]  # indices of calls
    value: Any


class _Trace:
    """Runs a model operation by operation and notes what each one returns."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self._writers: dict[int, int] = {}  # index of a call by the id of its value, which `calls` keeps alive
        self._counts: Counter[int] = Counter()  # calls of an operation, by its id

    def start(self, values: np.ndarray) -> None:
        """Note the preprocessed pixels."""
        from keras import ops

        self._note(INPUT, (), None, (), ops.convert_to_tensor(values))

    def run(self, model: Any, inputs: Sequence[Any], scope: tuple[str, ...]) -> Any:
        """Return the outputs of a Functional or Sequential model for tensors."""
        from keras import tree

        graph = getattr(model, "_functional", model)  # Keras has no public way to run a model by its operations

        def bound(operation: Any) -> Any:
            return lambda *args, **options: self._call(operation, args, options, scope)

        return graph._run_through_graph(tree.pack_sequence_as(graph._inputs_struct, list(inputs)), operation_fn=bound)

    def unique_names(self) -> list[str]:
        """Return a name for each call, with the models around it where another one has its name."""
        counts = Counter(call.name for call in self.calls)
        first, *others = self.calls
        layers = ["/".join((*call.scope, call.name)) if counts[call.name] > 1 else call.name for call in others]
        return [first.name, *(f"{name} (layer)" if name == first.name else name for name in layers)]

    def _call(self, operation: Any, args: tuple[Any, ...], options: dict[str, Any], scope: tuple[str, ...]) -> Any:
        import keras
        from keras import tree

        tensors = [value for value in tree.flatten((args, options)) if id(value) in self._writers]
        self._counts[id(operation)] += 1
        again = f" (call {self._counts[id(operation)]})" if self._counts[id(operation)] > 1 else ""
        if isinstance(operation, keras.Model) and hasattr(getattr(operation, "_functional", operation), "operations"):
            return self.run(operation, tree.flatten(args), (*scope, f"{operation.name}{again}"))
        if "training" in getattr(operation, "_call_context_args", ()):
            options = {**options, "training": False}  # called on its own, an augmentation is in training mode
        result = operation(*args, **options)
        sources = tuple(dict.fromkeys(self._writers[id(value)] for value in tensors))
        for number, value in enumerate(tree.flatten(result), start=1):
            part = f" (output {number})" if number > 1 else ""
            self._note(f"{operation.name}{again}{part}", scope, operation, sources, value)
        return result

    def _note(self, name: str, scope: tuple[str, ...], operation: Any, inputs: tuple[int, ...], value: Any) -> None:
        self._writers.setdefault(id(value), len(self.calls))  # a layer that passes its input on is not its writer
        self.calls.append(_Call(name, scope, operation, inputs, value))
