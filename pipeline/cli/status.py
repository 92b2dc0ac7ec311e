"""What a person is told before a stage runs: results that are out of date, and refusals that are known at once.

What a person is told of stages whose results are no longer those of what they were made from.

What a stage would refuse at once, found without running it: no TensorFlow, nothing decoded, nothing written.
"""

import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.errors import ModelError, ProjectError
from export.words import listed
from pipeline.artifacts.inputs import recipe_changes
from pipeline.artifacts.manifest import Key, Manifest, read_manifest, why_stale
from pipeline.data.splits import check_split_sizes, needed_images
from pipeline.stages import BY_NAME, STAGES
from pipeline.workflow.context import Context
from pipeline.workflow.stage import Stage, reasons_to_run

log = logging.getLogger(__name__)

_ABSENT = object()
_PACKED = STAGES[: STAGES.index(BY_NAME["verify"]) + 1]  # the rest is made from these, on any machine


def warn_of_stale_inputs(stage: Stage[Any], context: Context) -> None:
    """Say which earlier results of the chain are damaged or not up to date."""
    if warn_of_damage(context, STAGES[: STAGES.index(stage)]):
        return  # what else is stale is so because of that
    for earlier in STAGES[: STAGES.index(stage)]:
        if read_manifest(context.folder(earlier.name)) is None:
            continue  # the stage itself says what it misses
        if reasons := reasons_to_run(earlier, context):
            log.warning(
                "the result of %s is not up to date (%s); `run` brings the whole chain up", earlier.name, reasons[0]
            )


def warn_of_damage(context: Context, stages: Sequence[Stage[Any]] = _PACKED[:-1]) -> bool:
    """Name files that are not what their stage wrote, with the command that makes them anew; no input is looked at.

    Args:
        context: of the recipe.
        stages: whose files. Defaults to those that verify and the benchmark read.

    Returns:
        Whether there are such files.
    """
    found = False
    for stage in stages:
        folder = context.folder(stage.name)
        if (manifest := read_manifest(folder)) is None:
            continue
        own = Key(dict(manifest.inputs), dict(manifest.config), manifest.code, dict(manifest.environment))
        if damage := why_stale(folder, manifest, own):
            command = context.command(stage.name)
            log.warning("%s: not as the stage wrote it: %s. Make it anew: `%s`", folder, listed(damage), command)
            found = True
    return found


def refuse_stale_artifacts(context: Context) -> None:
    """Refuse to pack results that the other machine, without images and Keras, could not bring up to date.

    What a stage asks of its machine does not count, nor how engines are to be built: both are the other machine's.
    Where the images are not here what the manifests say of them stands, so that an unpacked archive can be packed.

    Raises:
        ProjectError: a stage has not run, or is older than what it was made from; with the command to run first.
    """
    found = []
    for stage in _PACKED:
        folder = context.folder(stage.name)
        manifest = read_manifest(folder)
        if manifest is None:
            found.append(f"{stage.name} has not run")
        elif reasons := why_stale(folder, manifest, _key_there(stage, context, manifest)):
            found.append(f"{stage.name} is not up to date ({reasons[0]})")
    if found:
        raise ProjectError(
            f"Expected results from {_PACKED[0].name} to {_PACKED[-1].name} that are up to date, because the machine "
            f"that unpacks them may lack what makes them anew. Received: {listed(found, separator='; ')}. "
            f"Run first: `{context.command('run')}`"
        )


def _key_there(stage: Stage[Any], context: Context, manifest: Manifest) -> Key:
    """What decides a stage's result, but for what is the other machine's to decide."""
    key = replace(stage.key(context, manifest), environment=dict(manifest.environment))
    return replace(key, config=dict(manifest.config)) if stage.name == "build" else key


def warn_of_a_new_training(context: Context) -> None:
    """Before a model is replaced because the recipe says otherwise by now: how to keep it."""
    if options := list(_options_as_before(context)):
        log.warning(
            "the recipe says otherwise than when the model in %s was made, so it is made anew. To keep it, stop here "
            "and add the same options as before: %s",
            *(context.folder("train"), " ".join(options)),
        )


def _options_as_before(context: Context) -> Iterator[str]:
    manifest = read_manifest(context.folder("train"))
    for change in recipe_changes(manifest, context.recipe):
        key = change.partition(": ")[0]
        value: Any = manifest.config if manifest else {}
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            said = value if isinstance(value, str) else json.dumps(value)
            yield f"--set {shlex.quote(f'{key}={said}')}"


def refuse_in_advance(stage: Stage[Any], context: Context) -> None:
    """Raise what a stage that has to run would raise before it works on anything.

    Raises:
        DataError: the images are not here, or too few of them for a split.
        ModelError: ``model.path`` is no model file, holds code that is not allowed, or is no image classifier.
    """
    if stage.name == "train":
        check_split_sizes(context.images, needed_images(context.recipe, len(context.images.classes)))
        if (path := context.recipe.model.path) is not None:
            _refuse_model(Path(path), context)
    elif stage.name == "quantize":
        check_split_sizes(context.images, {"calibration": context.recipe.quantize.min_images})


def _refuse_model(path: Path, context: Context) -> None:
    from pipeline.keras_files.code_scan import refuse_unsafe
    from pipeline.keras_files.read import read_model_file
    from pipeline.models.classifier_check import why_no_classifier

    file = read_model_file(path)
    refuse_unsafe(file.findings, context.recipe.model.allow, str(path))
    if cannot := why_no_classifier(file):
        raise ModelError(
            f"model.path: expected an image classifier. Received: {path}: {cannot}. "
            "`python -m pipeline inspect` says how to cut a model to its classifier."
        )
