"""The line of Python that cuts a model to the one output that is an image classifier's. Imports no Keras."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.endings import Ending, before_naming, output_ends, signature
from pipeline.model_file import ModelFile

_ORDER = ("softmax", "sigmoid", "linear")  # what most likely is the classifier among several outputs


@dataclass(frozen=True)
class Cut:
    """How to cut a model.

    Attributes:
        output: the layer, or the output of a SavedModel, that stays.
        others: those that fit as well.
        saved: the file or folder that the line writes.
        line: Python, to be run where the model's path is relative to.
    """

    output: str
    others: tuple[str, ...]
    saved: str
    line: str


def cut_to_one_output(file: ModelFile) -> Cut | None:
    """How to cut a model of several outputs, or one that ends in the name of a class; None where nothing fits."""
    fitting = sorted(_candidates(file), key=lambda found: _rank(found[1]))
    if not fitting:
        return None
    output, *others = (name for name, _ in fitting)
    saved = f"{stem_of(file.path)}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', output)}"
    if file.config is None:
        return _of_signature(file, output, others, saved)
    suffix = ".h5" if file.legacy else ".keras"
    package = "tf_keras as keras" if file.legacy else "keras"
    line = (
        f"import {package}; model = keras.models.load_model({str(file.path)!r}, compile=False); "
        f"keras.Model(model.inputs[0], model.get_layer({output!r}).output).save({saved + suffix!r})"
    )
    return Cut(output, tuple(others), saved + suffix, line)


def stem_of(path: Path) -> str:
    """The name of a model's file without its ending, as a recipe may be called."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-._") or "model"


def _candidates(file: ModelFile) -> Iterator[tuple[str, Ending]]:
    if file.config is None:
        found = [(name, Ending(shape, None)) for name, (_, shape) in sorted(signature(file, "outputs").items())]
        ends = found if len(found) > 1 else []
    else:
        found = output_ends(file.config)
        ends = found if len(found) > 1 else before_naming(file.config)
    for name, end in ends:
        if end.shape is not None and len(end.shape) == 1 and (end.shape[0] != 1 or end.activation == "sigmoid"):
            yield name, end


def _rank(end: Ending) -> int:
    return _ORDER.index(end.activation) if end.activation in _ORDER else len(_ORDER)


def _of_signature(file: ModelFile, output: str, others: list[str], saved: str) -> Cut | None:
    inputs = signature(file, "inputs")
    if len(inputs) != 1:
        return None
    ((name, (kind, shape)),) = inputs.items()
    if shape is None:
        return None
    line = (
        f"import tensorflow as tf; model = tf.saved_model.load({str(file.path)!r}); "
        f"answer = model.signatures[{file.signature[0]!r}]; "
        f"one = tf.function(lambda **given: {{{output!r}: answer(**given)[{output!r}]}}); "
        f"given = {{{name!r}: tf.TensorSpec({[None, *shape]}, {kind!r}, {name!r})}}; "
        f"tf.saved_model.save(model, {saved!r}, signatures=one.get_concrete_function(**given))"
    )
    return Cut(output, tuple(others), saved, line)
