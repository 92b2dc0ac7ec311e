"""A stage is a step from files to files; this decides whether it runs, and puts its result in place at once."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from export.errors import ProjectError, add_note
from export.files import recover_folder, replacing_folder
from export.words import count, listed
from pipeline.artifacts.files import sha256_json
from pipeline.artifacts.inputs import CommandLine, DeclaredSplits, Input, Inputs, Split, declared_part, value_at
from pipeline.artifacts.manifest import (
    Key,
    Manifest,
    code_hash,
    read_manifest,
    read_result,
    version_changes,
    why_stale,
    without_defaults,
    write_manifest,
)
from pipeline.artifacts.output import explaining_full_disk, require_space
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
        name: verb and folder.
        inputs: what it reads.
        keys: sections and dotted keys of the recipe that it reads; they decide its result, but for permissions.
        run: does it, from its inputs and its part of the recipe into an empty folder; returns what to record of it.
        result: the type of that, a frozen dataclass.
        environment: facts about this machine that decide too, of the declared part of the recipe.
        takes_new_images: every image is decoded before it runs, and what is damaged is left out from then on.
        bytes_per_weight: of the model, in all that it writes; 0 where that is not known before it runs.
        module: whose code counts, with all that it imports. Defaults to that of ``run``.
    """

    name: str
    inputs: Sequence[Input]
    keys: Sequence[str]
    run: Callable[[Inputs, Recipe, Path], R]
    result: type[R]
    environment: Callable[[Recipe], dict[str, object]] = field(default=lambda _: {})
    takes_new_images: bool = False
    bytes_per_weight: Callable[[Recipe], int] = field(default=lambda _: 0)
    module: str = ""

    def key(self, context: Context, manifest: Manifest | None) -> Key:
        """What decides this stage's result now."""
        digests = self.digests(context, manifest.inputs if manifest else {})
        code = code_hash(self.module or self.run.__module__)
        return Key(digests, self.recipe_part(context), code, self.environment(self.settings(context)))

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """What of its inputs decides the result, by content; ``recorded`` are those of its former run."""
        return {name: digest for one in self.inputs for name, digest in one.digests(context, recorded).items()}

    def recipe_part(self, context: Context) -> dict[str, object]:
        """The part of the recipe that decides this stage's result."""
        return recipe_slice(context.recipe, self.keys)

    def recorded(self, context: Context, manifest: Manifest) -> R:
        """What the manifest records of the result.

        Raises:
            ProjectError: it is not what this stage returns; with the command that makes it anew.
        """
        return read_result(manifest, self.result, f"Make it anew: `{context.command(self.name)} --force`.")

    def settings(self, context: Context) -> Recipe:
        """The declared part of the recipe, permissions included."""
        return declared_part(context.settings, self.keys)

    def hand_over(self, context: Context, key: Key) -> Inputs:
        """The declared inputs, and nothing else."""
        splits = [one for one in self.inputs if isinstance(one, Split)]
        return Inputs(
            context.root,
            tuple(pattern for one in self.inputs for pattern in one.files),
            digests=key.inputs,
            key=sha256_json(asdict(key)),
            find_images=partial(_declared_images, context, splits) if splits else None,
            command_line=context.invocation if any(isinstance(one, CommandLine) for one in self.inputs) else None,
        )


def _declared_images(context: Context, declared: Sequence[Split]) -> ImageSet:
    images = context.images
    needed = {split.name: value_at(context.recipe, split.minimum) for split in declared if split.minimum}
    check_split_sizes(images, needed)
    return replace(images, splits=DeclaredSplits({split.name: images.splits[split.name] for split in declared}))


@dataclass(frozen=True)
class Outcome:
    """What became of a stage."""

    stage: str
    ran: bool
    reasons: tuple[str, ...]
    manifest: Manifest


def reasons_to_run(stage: Stage[Any], context: Context) -> list[str]:
    """Why the stage would run now; empty when its result is up to date."""
    folder = context.folder(stage.name)
    manifest = read_manifest(folder)
    return why_stale(folder, manifest, stage.key(context, manifest))


def execute(stage: Stage[Any], context: Context, force: bool = False) -> Outcome:
    """Run a stage unless its result is up to date; a failure or a kill leaves the former result as it was.

    Raises:
        ProjectError: whatever the stage cannot do.
    """
    folder = context.folder(stage.name)
    recover_folder(folder)
    manifest = read_manifest(folder)
    key = stage.key(context, manifest)
    reasons = ["--force"] if force else why_stale(folder, manifest, key)
    if manifest is not None and not reasons:
        log.info("%-9s up to date", stage.name)
        if changes := version_changes(manifest):
            log.info("%-9s made with other versions: %s (--force makes it anew)", "", listed(changes))
        return Outcome(stage.name, False, (), manifest)
    log.info("%-9s runs: %s", stage.name, listed(reasons, most=4, separator="; "))
    if (weight := stage.bytes_per_weight(context.recipe)) and (parameters := _parameters(context)):
        what = f"the files of {stage.name}, which hold {count(parameters, 'weight')}"
        require_space(folder, weight * parameters, what)
    if stage.takes_new_images and context.leave_out_damaged():
        key = stage.key(context, manifest)
    if CARD in key.inputs:
        context.card()  # a recipe that says other than the model is refused
    start = time.perf_counter()
    try:
        with replacing_folder(folder) as temporary:
            with explaining_full_disk(folder), context.invocation.completing_errors():
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
        left = "keeps its former result" if folder.is_dir() else "has no result yet"
        add_note(error, f"Finished stages stay; {stage.name} {left}.")
        raise
    log.info("%-9s done in %.1f s", stage.name, seconds)
    return Outcome(stage.name, True, tuple(reasons), manifest)


def _parameters(context: Context) -> int | None:
    try:
        return read_card(context.root / CARD).parameters
    except ProjectError:
        return None  # the stage says what is wrong with it
