"""Stages, steps from files to files: decide whether one runs, run it, and replace its result atomically."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from export.errors import ProjectError, add_note
from export.files import ROOT, recover_folder, replacing_folder
from export.words import count, listed
from pipeline.artifacts.code_key import code_digest
from pipeline.artifacts.files import sha256_json
from pipeline.artifacts.inputs import CommandLine, DeclaredSplits, Input, Inputs, Split, declared_part, value_at
from pipeline.artifacts.manifest import (
    Key,
    Manifest,
    read_manifest,
    read_result,
    version_changes,
    why_stale,
    without_defaults,
    write_manifest,
)
from pipeline.artifacts.output import explain_full_disk, require_space
from pipeline.artifacts.paths import CARD
from pipeline.data.dataset import ImageSet
from pipeline.data.splits import check_split_sizes
from pipeline.models.model_card import read_card
from pipeline.recipe.load import recipe_slice
from pipeline.recipe.schema import Recipe
from pipeline.workflow.context import Context

log = logging.getLogger(__name__)
R = TypeVar("R")


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One step of the chain.

    Attributes:
        name: Name of its verb and of its folder.
        inputs: Declarations of what it reads.
        keys: Sections and dotted keys of the recipe that it reads; all but permissions decide its result.
        run: Function of its inputs, its part of the recipe and an empty folder to write to; returns its result.
        result: Type of the result, a frozen dataclass.
        environment: Function from the declared part of the recipe to facts about this machine that decide the result.
        takes_new_images: Whether every image is decoded before it runs, and damaged ones are left out from then on.
        bytes_per_weight: Function from the recipe to the bytes that it writes per weight of the model; 0 if unknown.
        fixed_bytes: Bytes that its files take beside the weights, as graphs and records do; counted where
            ``bytes_per_weight`` is known. Defaults to 0.
        module: Module whose code and imports decide the result. Defaults to "": the module of ``run``.
    """

    name: str
    inputs: Sequence[Input]
    keys: Sequence[str]
    run: Callable[[Inputs, Recipe, Path], R]
    result: type[R]
    environment: Callable[[Recipe], dict[str, object]] = field(default=lambda _: {})
    takes_new_images: bool = False
    bytes_per_weight: Callable[[Recipe], int] = field(default=lambda _: 0)
    fixed_bytes: int = 0
    module: str = ""

    def key(self, context: Context, manifest: Manifest | None) -> Key:
        """Return everything that decides this stage's present result."""
        return Key(
            self.digests(context, manifest.inputs if manifest else {}),
            self.recipe_part(context),
            code_digest(self.module or self.run.__module__, ROOT),
            self.environment(self.settings(context)),
        )

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the digests of its inputs; ``recorded`` are those of its last run."""
        return {name: digest for item in self.inputs for name, digest in item.digests(context, recorded).items()}

    def recipe_part(self, context: Context) -> dict[str, object]:
        """Return the part of the recipe that decides this stage's result."""
        return recipe_slice(context.recipe, self.keys)

    def recorded(self, context: Context, manifest: Manifest) -> R:
        """Return the result that a manifest records.

        Raises:
            ProjectError: It is not of this stage's type; with the command that writes it again.
        """
        return read_result(manifest, self.result, f"Make it again: `{context.command(self.name)} --force`.")

    def settings(self, context: Context) -> Recipe:
        """Return the declared part of the recipe, including permissions."""
        return declared_part(context.settings, self.keys)

    def hand_over(self, context: Context, key: Key) -> Inputs:
        """Return the declared inputs."""
        splits = [item for item in self.inputs if isinstance(item, Split)]
        return Inputs(
            context.root,
            tuple(pattern for item in self.inputs for pattern in item.files),
            digests=key.inputs,
            key=sha256_json(asdict(key)),
            find_images=partial(_declared_images, context, splits) if splits else None,
            command_line=context.invocation if any(isinstance(item, CommandLine) for item in self.inputs) else None,
        )


def _declared_images(context: Context, declared: Sequence[Split]) -> ImageSet:
    images = context.images
    needed = {split.name: value_at(context.recipe, split.minimum) for split in declared if split.minimum}
    check_split_sizes(images, needed)
    return replace(images, splits=DeclaredSplits({split.name: images.splits[split.name] for split in declared}))


@dataclass(frozen=True)
class Outcome:
    """The outcome of `execute`: whether the stage ran, why, and its manifest."""

    stage: str
    ran: bool
    reasons: tuple[str, ...]
    manifest: Manifest


def reasons_to_run(stage: Stage[Any], context: Context) -> list[str]:
    """List why a stage would run now; empty if its result is up to date."""
    folder = context.folder(stage.name)
    manifest = read_manifest(folder)
    return why_stale(folder, manifest, stage.key(context, manifest))


def execute(stage: Stage[Any], context: Context, force: bool = False) -> Outcome:
    """Run a stage unless its result is up to date; a failure or a kill leaves the previous result unchanged.

    Raises:
        ProjectError: The stage cannot run, or failed.
    """
    folder = context.folder(stage.name)
    recover_folder(folder)
    manifest = read_manifest(folder)
    key = stage.key(context, manifest)
    reasons = ["--force"] if force else why_stale(folder, manifest, key)
    if manifest is not None and not reasons:
        log.info("%-9s up to date", stage.name)
        if changes := version_changes(manifest):
            log.info("%-9s made with other versions: %s (--force makes it again)", "", listed(changes))
        return Outcome(stage.name, False, (), manifest)
    log.info("%-9s runs: %s", stage.name, listed(reasons, most=4, separator="; "))
    if (weight := stage.bytes_per_weight(context.recipe)) and (parameters := _parameters(context)):
        needed = weight * parameters + stage.fixed_bytes
        require_space(folder, needed, f"the files of {stage.name}, which hold {count(parameters, 'weight')}")
    if stage.takes_new_images and context.leave_out_damaged():
        key = stage.key(context, manifest)
    if CARD in key.inputs:
        context.card()  # refuses a recipe that contradicts the model
    start = time.perf_counter()
    try:
        with replacing_folder(folder) as temporary:
            with explain_full_disk(folder), context.invocation.completing_errors():
                result = stage.run(stage.hand_over(context, key), stage.settings(context), temporary)
            seconds = time.perf_counter() - start
            manifest = write_manifest(
                temporary,
                stage=stage.name,
                recipe=context.recipe.name,
                key=key,
                seconds=seconds,
                result=without_defaults(result),
            )
    except (OSError, KeyboardInterrupt) as error:
        left = "keeps its previous result" if folder.is_dir() else "has no result yet"
        add_note(error, f"Finished stages stay; {stage.name} {left}.")
        raise
    log.info("%-9s done in %.1f s", stage.name, seconds)
    return Outcome(stage.name, True, tuple(reasons), manifest)


def _parameters(context: Context) -> int | None:
    try:
        return read_card(context.root / CARD).parameters
    except ProjectError:
        return None  # the stage reports what is wrong with the card
