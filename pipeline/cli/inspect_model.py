"""``python -m pipeline inspect``: what a model file is, and a recipe to start from. Runs nothing of the model.

The line of Python that cuts a model to the one output that is an image classifier's. Imports no Keras.
"""

import itertools
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from pipeline.models.classifier_check import Ending, before_naming, ending, output_ends, signature, why_no_classifier
from pipeline.recipe.locate import RECIPES
from pipeline.recipe.messages import CHOOSE, inline_yaml

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


@dataclass(frozen=True)
class ModelFacts:
    """What a model file is.

    Attributes:
        path: of the file.
        kind: of file.
        written_by: such as "Keras 3.1.0".
        model_class: of the architecture; None where the file holds none.
        inputs: name, dtype and shape of each.
        outputs: the last layers: class, name, units and activation.
        classes: that it tells apart; None where the file does not say, or it is no classifier.
        layers: class to number.
        parameters: how many values it has.
        preprocessing: layers that change pixels before the first convolution.
        called_in_training: layers that the file calls with ``training=True``.
        unsafe: what runs code, or cannot be built.
        facts: of this kind of file, for people.
        cannot_go: why it cannot be deployed; None where nothing speaks against it.
        cut: how to make a classifier of it, where it cannot be deployed and that is known.
        recipe: to start from; None where it cannot be deployed.
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
    """Print what a model file is; the result holds the same for the JSON line.

    Of a model that cannot be deployed it says why instead of a recipe, which is no failure: that was the question.

    Args:
        path: the model file, or the folder of a SavedModel.
        recipe: where to write the recipe to start from. Defaults to None: it is printed.

    Raises:
        ModelError: not a model, damaged, or a file that is not safe to open at all.
        ProjectError: the recipe's file is there already, or there is no recipe to write.
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
    """The keys of the recipe that hold no value yet."""
    preprocessing = yaml.safe_load(recipe)["model"]["preprocessing"]
    return "data.path" + (" and model.preprocessing" if preprocessing != "auto" else "")


def _run(recipe: Path) -> str:
    return f"python -m pipeline run -c {shlex.quote(str(recipe))}"


def _check_new(recipe: Path) -> None:
    if recipe.exists() or not recipe.parent.is_dir() or recipe.suffix not in (".yaml", ".yml"):
        what = "which is there already" if recipe.exists() else "which is no .yaml file in a folder that exists"
        raise ProjectError(f"Expected a new .yaml file for the recipe. Received: {recipe}, {what}. Name another.")
    check_folder(recipe.parent, "--recipe", recipe)


def describe(file: ModelFile, recipe: Path | None = None) -> ModelFacts:
    """What a model file is.

    Args:
        file: what was read.
        recipe: where its recipe will stand. Defaults to None: a free name among the recipes here.
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
        classes=None if cannot else ending(file).classes,
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
        "not told apart in this file"
        if counts.trainable is None
        else (f"{counts.trainable:,} trainable, {counts.frozen:,} not")
    )
    layers = ", ".join(f"{number} {kind}" for kind, number in facts.layers.items())
    lines = [
        facts.path,
        f"  {'file':<14} {facts.kind}, written by {facts.written_by}",
        *(f"  {name:<14} {value}" for name, value in facts.facts.items()),
        f"  {'input':<14} {'; '.join(facts.inputs) or 'the file does not say'}",
        f"  {'output':<14} {'; '.join(facts.outputs) or 'the file does not say'}",
        f"  {'classes':<14} {facts.classes or 'the file does not say'}",
        f"  {'layers':<14} {layers or 'none: a graph without layers'}",
        f"  {'parameters':<14} {counts.total:,} ({trainable})",
        f"  {'preprocessing':<14} {'; '.join(facts.preprocessing) or 'none found inside'}",
    ]
    if called := facts.called_in_training:
        lines.append(
            f"  {'training=True':<14} in the calls of {len(called)} of its layers ({listed(called)}); refused unless "
            "model.called_in_training says inference"
        )
    for finding in facts.unsafe:
        way = "refused unless model.allow names it" if finding.allowable else "refused"
        lines.append(f"  {'unsafe':<14} {finding.name}: {finding.why} ({way})")
    return lines if facts.unsafe else [*lines, f"  {'unsafe':<14} nothing"]


def _recipe(file: ModelFile, recipe: Path) -> str:
    """A recipe as YAML; what the file does not say is there to fill in, with the choices beside it.

    The path in it is right where the recipe is saved as its first line says.
    """
    text = inline_yaml
    lines = [
        f"# {recipe}",
        "data:",
        "  path: /path/to/images  # a folder with a subfolder for each class",
        "  splits: {calibration: 0.5, test: 0.5}  # nothing is trained: half for INT8's scales, half for the verdict",
        "model:",
        f"  path: {text(_path_from(recipe.parent, file.path))}",
    ]
    inside = "; ".join(preprocessing_inside(file.config))
    normalises = f". none, if this normalises: {text(inside)}" if inside else ""
    end = ending(file)
    one_of_several = end.activation == "sigmoid" and end.shape is not None and end.shape != (1,)
    scores = end.activation not in (None, "sigmoid", "softmax", "linear", "log_softmax")
    arithmetic = arithmetic_inside(file.config)
    any_size = any("None, None" in shape for shape in input_shapes(file))
    allow = ", ".join(text(finding.name) for finding in file.findings if finding.allowable)
    keys = (
        (arithmetic, f"preprocessing: auto  # none, if this takes 0..255 to a normalised range: {text(inside)}"),
        (
            not arithmetic,
            f"preprocessing: {CHOOSE}  # caffe, tf, torch, unit or none, as it was trained with; the file does not "
            f"say{normalises}",
        ),
        (
            called_in_training(file),
            "called_in_training: refuse  # inference: with other answers than the file's, see training=True",
        ),
        (file.config is None, "output: auto  # or say it: logits, softmax or sigmoid"),
        (one_of_several, "output: sigmoid  # if exactly one class is right for each image"),
        (scores, f"output: logits  # if the values of its {end.activation} are scores to rank classes by"),
        (allow, f"allow: [{allow}]  # lets it run; only if you trust its author"),
        (True, "# classes: [first, second]  # names in the order of its outputs, if not that of the sorted folders"),
        (any_size, "input_size: 224  # it takes any size"),
    )
    return "\n".join([*lines, *(f"  {line}" for due, line in keys if due)]) + "\n"


def _destination(model: Path) -> Path:
    """Where a recipe of a model is to be saved: a name that is free, among the recipes where they lie here."""
    folder = RECIPES if RECIPES.is_dir() else Path()
    names = (stem_of(model) + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
    return next(path for name in names if not (path := folder / f"{name}.yaml").exists())


def _path_from(folder: Path, model: Path) -> str:
    """A model's path as a recipe in a folder names it: relative below the working directory, else in full."""
    model = model.resolve()
    return os.path.relpath(model, folder.resolve()) if model.is_relative_to(Path.cwd().resolve()) else str(model)
