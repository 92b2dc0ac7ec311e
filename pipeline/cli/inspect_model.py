"""``python -m pipeline inspect``: describe a model file, and write a recipe to start from.

Imports no Keras, and runs nothing of the model. For a model that is no image classifier but holds one, it gives the
line of Python that cuts the model to that output.
"""

import itertools
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml

from export.errors import ProjectError
from export.files import write_atomic
from export.records import to_json
from export.words import listed
from pipeline.artifacts.output import check_folder
from pipeline.keras_files.code_scan import Finding
from pipeline.keras_files.facts import (
    Parameters,
    arithmetic_inside,
    called_in_training,
    input_shapes,
    layer_counts,
    outputs,
    parameters,
    preprocessing_inside,
)
from pipeline.keras_files.model_file import ModelFile
from pipeline.keras_files.read import read_model_file
from pipeline.models.classifier_check import (
    ModelOutput,
    before_argmax,
    first_output,
    output_layers,
    signature,
    why_no_classifier,
)
from pipeline.recipe.locate import RECIPES
from pipeline.recipe.messages import CHOOSE, inline_yaml

_ORDER = ("softmax", "sigmoid", "linear")  # activations of a classifier's output, the most likely first


@dataclass(frozen=True)
class Cut:
    """How to cut a model.

    Attributes:
        output: the layer, or the output of a SavedModel, that stays.
        others: the other outputs that could be an image classifier's.
        saved: the file or folder that the line writes.
        line: Python; the model's path in it is relative to the working directory.
    """

    output: str
    others: tuple[str, ...]
    saved: str
    line: str


def cut_to_one_output(file: ModelFile) -> Cut | None:
    """Return how to cut a model with several outputs, or one that ends in class names; None if no output fits."""
    candidates = [
        (_ORDER.index(end.activation) if end.activation in _ORDER else len(_ORDER), name)
        for name, end in _endings(file)
        if end.shape is not None and len(end.shape) == 1 and (end.shape[0] != 1 or end.activation == "sigmoid")
    ]
    if not candidates:
        return None
    output, *others = (name for _, name in sorted(candidates, key=itemgetter(0)))
    saved = f"{_stem_of(file.path)}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', output)}"
    if file.config is None:
        return _cut_by_signature(file, output, others, saved)
    saved += ".h5" if file.legacy else ".keras"
    line = (
        f"import {'tf_keras as ' if file.legacy else ''}keras; "
        f"model = keras.models.load_model({str(file.path)!r}, compile=False); "
        f"keras.Model(model.inputs[0], model.get_layer({output!r}).output).save({saved!r})"
    )
    return Cut(output, tuple(others), saved, line)


def _stem_of(path: Path) -> str:
    """Return the name of a model's file without its suffix, in the characters of a recipe's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-._") or "model"


def _endings(file: ModelFile) -> Sequence[tuple[str, ModelOutput]]:
    """Return the outputs if there are several, else those in front of layers that turn classes into their names."""
    if file.config is None:
        endings = [(name, ModelOutput(shape, None)) for name, (_, shape) in sorted(signature(file, "outputs").items())]
        return endings if len(endings) > 1 else []
    endings = output_layers(file.config)
    return endings if len(endings) > 1 else before_argmax(file.config)


def _cut_by_signature(file: ModelFile, output: str, others: list[str], saved: str) -> Cut | None:
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


@dataclass(frozen=True)
class ModelFacts:
    """What a model file is.

    Attributes:
        path: the file, or the folder of a SavedModel.
        kind: the file's format.
        written_by: such as "Keras 3.1.0".
        model_class: class of the architecture; None where the file holds none.
        inputs: name, dtype and shape of each.
        outputs: the last layers: class, name, units and activation.
        classes: how many classes it has; None where the file does not say, or it is no classifier.
        layers: number of layers by class.
        parameters: how many values it has.
        preprocessing: layers that change pixels before the first convolution.
        called_in_training: layers that the file calls with ``training=True``.
        unsafe: what runs code, or cannot be built.
        facts: further facts for people, by name; they depend on the format.
        cannot_go: why it cannot be deployed; None where it can.
        cut: how to cut it to a classifier, where it cannot be deployed as it is and a cut is known.
        recipe: to start from, YAML; None where it cannot be deployed.
    """

    path: str
    kind: str
    written_by: str
    model_class: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    classes: int | None
    layers: Mapping[str, int]
    parameters: Parameters
    preprocessing: tuple[str, ...]
    called_in_training: tuple[str, ...]
    unsafe: tuple[Finding, ...]
    facts: Mapping[str, Any]
    cannot_go: str | None
    cut: Cut | None
    recipe: str | None


def inspect_model(path: Path, recipe: Path | None = None) -> dict[str, object]:
    """Print what a model file is.

    For a model that cannot be deployed it prints why instead of a recipe, which is no failure: that was the question.

    Args:
        path: the model file, or the folder of a SavedModel.
        recipe: where to write the recipe to start from. Defaults to None: it is printed.

    Returns:
        dict[str, object]: `ModelFacts`, for the JSON line.

    Raises:
        ModelError: not a model, damaged, or a file that is not safe to open at all.
        ProjectError: the recipe's file exists already, or there is no recipe to write.
    """
    if recipe is not None:
        _check_new(recipe)
    facts = describe(read_model_file(path), recipe)
    print("\n".join(_lines(facts)))
    if facts.recipe is None:
        print(f"\nno recipe: this cannot be deployed as an image classifier, because {facts.cannot_go}.")
        if cut := facts.cut:
            instead = f" (or, with that name in its place, {listed(cut.others)})" if cut.others else ""
            print(f"\nto cut it to {cut.output!r}{instead} run this in Python, and inspect {cut.saved}:")
            print(f"\n{cut.line}")
        if recipe is not None:
            raise ProjectError(
                f"Expected a model that can be deployed, for a recipe in {recipe}. Received: {path}, which cannot; "
                "the lines above say why. Nothing was written."
            )
    elif recipe is not None:
        write_atomic(recipe, facts.recipe)
        print(f"\n{recipe}: a recipe to start from. Fill in {_open_keys(facts.recipe)}, then: {_run(recipe)}")
    else:
        new = _destination(path)
        print(f"\nrecipe to start from: save it as {new}, fill in {_open_keys(facts.recipe)}, then: {_run(new)}\n")
        print(facts.recipe, end="")
    return to_json(facts)


def _open_keys(recipe: str) -> str:
    """Return the keys of the recipe that the user has to fill in."""
    is_known = yaml.safe_load(recipe)["model"]["preprocessing"] == "auto"
    return "data.path" if is_known else "data.path and model.preprocessing"


def _run(recipe: Path) -> str:
    return f"python -m pipeline run -c {shlex.quote(str(recipe))}"


def _check_new(recipe: Path) -> None:
    if recipe.exists() or not recipe.parent.is_dir() or recipe.suffix not in (".yaml", ".yml"):
        reason = "which exists already" if recipe.exists() else "which is no .yaml file in a folder that exists"
        raise ProjectError(f"Expected a new .yaml file for the recipe. Received: {recipe}, {reason}. Name another.")
    check_folder(recipe.parent, "--recipe", recipe)


def describe(file: ModelFile, recipe: Path | None = None) -> ModelFacts:
    """Describe a model file.

    Args:
        file: the content of the file.
        recipe: path of its recipe. Defaults to None: a free name in ``configs/``.
    """
    cannot = why_no_classifier(file)
    cut = cut_to_one_output(file) if cannot and not any(not finding.allowable for finding in file.findings) else None
    return ModelFacts(
        path=str(file.path),
        kind=file.kind,
        written_by=file.written_by,
        model_class=file.config.get("class_name") if file.config else None,
        inputs=input_shapes(file),
        outputs=outputs(file),
        classes=None if cannot else first_output(file).classes,
        layers=layer_counts(file.config),
        parameters=parameters(file),
        preprocessing=preprocessing_inside(file.config),
        called_in_training=tuple(called_in_training(file)),
        unsafe=file.findings,
        facts={name: value for name, value in file.facts.items() if name != "signatures"},
        cannot_go=cannot,
        cut=cut,
        recipe=None if cannot else _recipe(file, recipe or _destination(file.path)),
    )


def _lines(facts: ModelFacts) -> list[str]:
    counts = facts.parameters
    trainable = (
        "this file does not say which are trainable"
        if counts.trainable is None
        else f"{counts.trainable:,} trainable, {counts.frozen:,} not"
    )
    layers = ", ".join(f"{number} {kind}" for kind, number in facts.layers.items())
    lines = [
        facts.path,
        f"  {'file':<14} {facts.kind}, written by {facts.written_by}",
        *(f"  {name:<14} {value}" for name, value in facts.facts.items()),
        f"  {'input':<14} {'; '.join(facts.inputs) or 'the file does not say'}",
        f"  {'output':<14} {'; '.join(facts.outputs) or 'the file does not say'}",
        f"  {'classes':<14} {facts.classes or 'the file does not say'}",
        f"  {'layers':<14} {layers or 'none, the file holds only a graph'}",
        f"  {'parameters':<14} {counts.total:,} ({trainable})",
        f"  {'preprocessing':<14} {'; '.join(facts.preprocessing) or 'none found inside'}",
    ]
    if called := facts.called_in_training:
        lines.append(
            f"  {'training=True':<14} in the calls of {len(called)} of its layers ({listed(called)}); refused unless "
            "model.called_in_training says inference"
        )
    unsafe = [
        f"{finding.name}: {finding.why} (refused{' unless model.allow names it' if finding.allowable else ''})"
        for finding in facts.unsafe
    ]
    return lines + [f"  {'unsafe':<14} {text}" for text in unsafe or ["nothing"]]


def _recipe(file: ModelFile, recipe: Path) -> str:
    """Return a recipe as YAML; what the file does not say is left to fill in, with the choices beside it.

    The model's path in it is relative to the recipe's own path, which is its first line.
    """
    lines = [
        f"# {recipe}",
        "data:",
        "  path: /path/to/images  # a folder with a subfolder for each class",
        "  splits: {calibration: 0.5, test: 0.5}  # nothing is trained: half for INT8's scales, half for the verdict",
        "model:",
        f"  path: {inline_yaml(_path_from(recipe.parent, file.path))}",
    ]
    inside = inline_yaml("; ".join(preprocessing_inside(file.config)))
    normalises = f". none, if this normalises: {inside}" if preprocessing_inside(file.config) else ""
    end = first_output(file)
    arithmetic = arithmetic_inside(file.config)
    allow = ", ".join(inline_yaml(finding.name) for finding in file.findings if finding.allowable)
    keys = (
        (arithmetic, f"preprocessing: auto  # none, if this takes 0..255 to a normalised range: {inside}"),
        (
            not arithmetic,
            f"preprocessing: {CHOOSE}  # caffe, tf, torch, unit or none, as it was trained with; the file does not "
            f"say{normalises}",
        ),
        (
            called_in_training(file),
            "called_in_training: refuse  # inference: with other predictions than the file's, see training=True",
        ),
        (file.config is None, "output: auto  # or name it: logits, softmax or sigmoid"),
        (
            end.activation == "sigmoid" and end.shape is not None and end.shape != (1,),
            "output: sigmoid  # if exactly one class is right for each image",
        ),
        (
            end.activation not in (None, "sigmoid", "softmax", "linear", "log_softmax"),
            f"output: logits  # if the values of its {end.activation} are scores to rank classes by",
        ),
        (allow, f"allow: [{allow}]  # lets it run; only if you trust its author"),
        (True, "# classes: [first, second]  # names in the order of its outputs, if not that of the sorted folders"),
        (any("None, None" in shape for shape in input_shapes(file)), "input_size: 224  # it takes any size"),
    )
    return "\n".join([*lines, *(f"  {line}" for due, line in keys if due)]) + "\n"


def _destination(model: Path) -> Path:
    """Return a free path for a model's recipe, in ``configs/`` where that exists."""
    folder = RECIPES if RECIPES.is_dir() else Path()
    names = (_stem_of(model) + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    return next(path for name in names if not (path := folder / f"{name}.yaml").exists())


def _path_from(folder: Path, model: Path) -> str:
    """Return a model's path relative to a recipe's folder if it is below the working directory, else in full."""
    model = model.resolve()
    return os.path.relpath(model, folder.resolve()) if model.is_relative_to(Path.cwd().resolve()) else str(model)
