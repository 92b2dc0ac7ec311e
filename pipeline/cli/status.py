"""Warnings and refusals before a stage runs: stale or damaged results, and inputs that a stage would refuse at once.

Nothing here runs a stage, imports TensorFlow, decodes an image or writes a file.
"""

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.errors import ModelError, ProjectError
from export.words import listed
from pipeline.artifacts.inputs import recipe_changes
from pipeline.artifacts.manifest import Key, flatten, read_manifest, why_stale
from pipeline.data.splits import check_split_sizes, needed_images
from pipeline.stages import BY_NAME, STAGES
from pipeline.workflow.context import Context
from pipeline.workflow.stage import Stage, reasons_to_run

log = logging.getLogger(__name__)

_PACKED = STAGES[: STAGES.index(BY_NAME["verify"]) + 1]  # any machine can make the results of later stages from these


def warn_of_stale_inputs(stage: Stage[Any], context: Context) -> None:
    """Warn of results of earlier stages that are damaged or not up to date."""
    earlier = STAGES[: STAGES.index(stage)]
    if warn_of_damage(context, earlier):
        return  # damage is what makes later results stale
    for other in earlier:
        # A missing result is the stage's own error.
        if read_manifest(context.folder(other.name)) is not None and (reasons := reasons_to_run(other, context)):
            log.warning(
                "the result of %s is not up to date (%s); `run` updates the whole chain", other.name, reasons[0]
            )


def warn_of_damage(context: Context, stages: Sequence[Stage[Any]] = _PACKED[:-1]) -> bool:
    """Warn of files that differ from what their stage wrote, with the command that rewrites them; inputs do not count.

    Args:
        context: the recipe and its artifacts.
        stages: the stages whose files are compared. Defaults to those that verify and the benchmark read.

    Returns:
        bool: whether there are such files.
    """
    is_damaged = False
    for stage in stages:
        folder = context.folder(stage.name)
        if (manifest := read_manifest(folder)) is None:
            continue
        own = Key(dict(manifest.inputs), dict(manifest.config), manifest.code, dict(manifest.environment))
        if damage := why_stale(folder, manifest, own):
            is_damaged = True
            log.warning(
                "%s: not as the stage wrote it: %s. Run it again: `%s`",
                *(folder, listed(damage), context.command(stage.name)),
            )
    return is_damaged


def refuse_stale_artifacts(context: Context) -> None:
    """Refuse to pack results that the other machine, without images and Keras, could not bring up to date.

    A stage's environment does not count, nor how engines are to be built: the other machine decides both. Where the
    images are not here, their digests in the manifests count, so that an unpacked archive can be packed again.

    Raises:
        ProjectError: a stage has not run, or is older than its inputs; with the command to run first.
    """
    stale = []
    for stage in _PACKED:
        folder = context.folder(stage.name)
        manifest = read_manifest(folder)
        if manifest is None:
            stale.append(f"{stage.name} has not run")
            continue
        key = replace(stage.key(context, manifest), environment=dict(manifest.environment))
        if stage.name == "build":
            key = replace(key, config=dict(manifest.config))
        if reasons := why_stale(folder, manifest, key):
            stale.append(f"{stage.name} is not up to date ({reasons[0]})")
    if stale:
        raise ProjectError(
            f"Expected results from {_PACKED[0].name} to {_PACKED[-1].name} that are up to date, because the machine "
            f"that unpacks them may be unable to update them. Received: {listed(stale, separator='; ')}. "
            f"Run first: `{context.command('run')}`"
        )


def warn_of_a_new_training(context: Context) -> None:
    """Warn that a changed recipe replaces the model, with the options that keep it."""
    manifest = read_manifest(context.folder("train"))
    recorded = flatten(manifest.config) if manifest else {}
    changed = (change.partition(": ")[0] for change in recipe_changes(manifest, context.recipe))
    values = {key: recorded[key] for key in changed if key in recorded}
    options = [
        f"--set {shlex.quote(f'{key}={value if isinstance(value, str) else json.dumps(value)}')}"
        for key, value in values.items()
    ]
    if options:
        log.warning(
            "the recipe has changed since the model in %s was made, so a new one replaces it. To keep it, stop now "
            "and add the same options as before: %s",
            *(context.folder("train"), " ".join(options)),
        )


def refuse_in_advance(stage: Stage[Any], context: Context) -> None:
    """Raise what a stage that has to run would raise before it starts its work.

    Raises:
        DataError: the images are missing, or too few for a split.
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
