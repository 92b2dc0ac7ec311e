"""A stage is a step from files to files; this decides whether it runs, and puts its result in place at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from export.errors import ProjectError
from export.files import recover_folder, replacing_folder
from export.records import from_json
from pipeline.artifacts import Artifacts
from pipeline.card import ModelCard, read_card, refuse_disagreement
from pipeline.class_names import in_model_order, model_names
from pipeline.command_line import Invocation
from pipeline.config import PATH_KEYS, PERMISSION_KEYS, override_tree, recipe_slice, section_of
from pipeline.data import DataMissingError, ImageSet, deal
from pipeline.decode_spec import DecodeSpec
from pipeline.errors import add_note
from pipeline.files import sha256_file, sha256_json, sha256_path
from pipeline.inputs import CommandLine, DeclaredSplits, Input, Inputs, Split, declared_part, value_at
from pipeline.layout import CARD
from pipeline.manifest import (
    MANIFEST,
    Key,
    Manifest,
    code_hash,
    config_changes,
    read_manifest,
    version_changes,
    why_stale,
    without_defaults,
    write_manifest,
)
from pipeline.model_settings import check_with_classes
from pipeline.output_files import require_space, saying_what_is_full
from pipeline.readable import find_damaged, recorded_damage
from pipeline.recipe import Recipe
from pipeline.recipe_files import where_else
from pipeline.recipe_rules import unread_by_finished
from pipeline.runners.options import RuntimeOptions
from pipeline.samples import Found, Unreadable
from pipeline.sources import read_source
from pipeline.split_sizes import check_split_sizes, needed_images
from pipeline.words import count, listed

log = logging.getLogger(__name__)


@dataclass
class Context:
    """What every stage of one recipe shares.

    Attributes:
        recipe: in force, overrides included.
        recipe_path: its file.
        artifacts: folder of all recipes' artifacts.
        overrides: the ``section.key=value`` strings that were laid over the file, for advice that repeats them.
    """

    recipe: Recipe
    recipe_path: Path
    artifacts: Path
    overrides: Sequence[str] = ()
    _said: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def root(self) -> Path:
        """``artifacts/<recipe>``."""
        return self.artifacts / self.recipe.name

    def folder(self, stage: str) -> Path:
        """``artifacts/<recipe>/<stage>``."""
        return self.root / stage

    @property
    def runtime(self) -> RuntimeOptions:
        """How engines are run. Who builds version-compatible ones lets them bring their code for the CPU."""
        own = self.recipe.runtime
        return replace(own, host_code=own.host_code or self.recipe.build.version_compatible)

    @property
    def settings(self) -> Recipe:
        """The recipe as code that runs engines takes it."""
        return replace(self.recipe, runtime=self.runtime)

    @property
    def invocation(self) -> Invocation:
        """What repeats this recipe on a command line."""
        return Invocation(self.recipe_path, self.artifacts, tuple(self.overrides))

    def command(self, verb: str, python: str | None = None) -> str:
        """The command line that runs a verb with this recipe, overrides and artifacts; safe to paste."""
        return self.invocation.command(verb, python)

    def card(self) -> ModelCard:
        """What belongs to the model besides its weights: the only place that says what happens to a picture.

        Raises:
            ModelError: missing or damaged.
            ProjectError: the recipe says otherwise.
        """
        self.required(CARD)
        card = read_card(self.root / CARD)
        refuse_disagreement(self.recipe, card, self.command("train"))
        self._refuse_another_file()
        return card

    def _refuse_another_file(self) -> None:
        """A finished model is known by the content of its file, whatever it is called; elsewhere it need not be."""
        path, manifest = self.recipe.model.path, read_manifest(self.folder("train"))
        recorded = manifest.inputs.get("model.path") if manifest else None
        if path is None or recorded is None or not Path(path).exists():
            return
        if sha256_path(Path(path)) != recorded:
            raise ProjectError(
                f"model.path: expected the file that the model was taken from (sha256 {recorded[:12]}...). "
                f"Received: {path}, which is another. Name that file, or take this one over: `{self.command('train')}`."
            )

    @cached_property
    def images(self) -> ImageSet:
        """The labelled images and their splits, found and hashed once.

        Those that were found damaged when the model was trained are left out by every stage.

        Raises:
            DataError: see ``pipeline.data.deal``.
        """
        manifest = read_manifest(self.folder("train"))
        return self._deal(recorded_damage(manifest.result) if manifest else {}, ())

    @cached_property
    def _found(self) -> Found:
        return read_source(self.recipe.data)

    def _deal(self, damaged: Mapping[str, str], known: Sequence[Unreadable]) -> ImageSet:
        recipe = self.recipe
        images = deal(self._found, recipe.data, trains=not recipe.model.finished, damaged=damaged)
        images = in_model_order(images, model_names(recipe.model.classes))
        for level, line in images.told(recipe.model.finished, known):
            self.say_once(level, line)
        return images

    def leave_out_damaged(self) -> bool:
        """Decode every image, before the first stage runs, and leave out what cannot be decoded.

        Returns:
            Whether other images than before are left out.

        Raises:
            DataError: too few images, or more unreadable ones than the recipe allows.
        """
        recipe, before = self.recipe, self.images
        for line in unread_by_finished(recipe):
            self.say_once(logging.WARNING, line)
        check_with_classes(recipe, len(before.classes))
        needed = needed_images(recipe, len(before.classes))
        check_split_sizes(before, needed)  # nobody should wait to be told what is known already
        decode = DecodeSpec((recipe.model.input_size, recipe.model.input_size), recipe.data.resize)
        self.images = self._deal(find_damaged(self._found.samples, decode), before.unreadable)
        check_split_sizes(self.images, needed)
        return self.images.unreadable != before.unreadable

    def say_once(self, level: int, message: str) -> None:
        """Log what would otherwise be said by every stage."""
        if message not in self._said:
            self._said.add(message)
            log.log(level, "%s", message)

    def files(self, pattern: str) -> dict[str, str]:
        """sha256 of the files of earlier stages that fit: ``{"stage/name": digest}``; where there is none, no entry."""
        return {name: sha256_file(self.root / name) for name in Artifacts(self.root).matching(pattern)}

    def required(self, name: str) -> dict[str, str]:
        """Like ``files``, for one that must be there.

        Raises:
            ProjectError: with the command that makes it.
        """
        path = self.root / name
        if not path.is_file():
            raise ProjectError(
                f"Expected {path}, which does not exist. Run `{self.command(name.partition('/')[0])}` first, or `run` "
                "for the whole chain."
            )
        return {name: sha256_file(path)}

    def split(self, name: str, recorded: Mapping[str, str]) -> dict[str, str]:
        """Fingerprint of a split. Where the data is not on this machine, the recorded one stands.

        That is so of a path in the recipe, which may be another machine's; who names one with --set means this machine.

        Args:
            name: the split.
            recorded: inputs in the stage's former manifest.

        Raises:
            DataMissingError: the data is not here and there is no former result, or --set names it.
        """
        key = f"data/{name}"
        try:
            classes = sha256_json(self.images.classes)
            return {key: self.images.fingerprint(name), "data/classes": classes}
        except DataMissingError as error:
            if key not in recorded or self._given_by_option("data.path", "data.classes"):
                raise
            why = f"{error}{where_else(str(error), self.recipe_path, self.overrides)}"
            self.say_once(logging.WARNING, f"the images are not here; what the manifests say of them stands: {why}")
            return {name: recorded[name] for name in (key, "data/classes")}

    def _given_by_option(self, *keys: str) -> bool:
        trees = [override_tree(override) for override in self.overrides]
        return any(key in section for tree in trees for section, key in (section_of(tree, dotted) for dotted in keys))

    def external(self, name: str, path: str | None, recorded: Mapping[str, str]) -> dict[str, str]:
        """sha256 of a file or folder outside the artifacts that the recipe names; recorded if it is not here.

        Raises:
            ProjectError: it is not here, and there is no record, or --set names it.
        """
        if path is None:
            return {}
        if Path(path).exists():
            return {name: sha256_path(Path(path))}
        if name in recorded and not self._given_by_option(name):
            place = where_else(path, self.recipe_path, self.overrides)
            self.say_once(logging.WARNING, f"{path} is not here, so what the manifest says of {name} stands.{place}")
            return {name: recorded[name]}
        raise ProjectError(f"{name}: expected a file. Received: {path}, which does not exist.")


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
        environment: facts about this machine that decide too, of a recipe.
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
        return Key(digests, self.recipe_part(context), code, self.environment(context.recipe))

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """What of its inputs decides the result, by content; ``recorded`` are those of its former run."""
        return {name: digest for one in self.inputs for name, digest in one.digests(context, recorded).items()}

    def recipe_part(self, context: Context) -> dict[str, object]:
        """The part of the recipe that decides this stage's result."""
        names = [name for name in self.keys if name not in (*PERMISSION_KEYS, *PATH_KEYS)]
        whole = recipe_slice(context.recipe, sorted({name.partition(".")[0] for name in names}))
        return {name: _dotted(whole, name) for name in names}

    def recipe_changes(self, context: Context) -> list[str]:
        """What that part says now and did not when the stage ran, such as "train.seed: 1 -> 2"; nothing is hashed."""
        manifest = read_manifest(context.folder(self.name))
        return config_changes(manifest, self.recipe_part(context)) if manifest else []

    def recorded(self, context: Context, manifest: Manifest) -> R:
        """What the manifest records of the result.

        Raises:
            ProjectError: it is not what this stage returns; with the command that makes it anew.
        """
        remedy = f"Make it anew: `{context.command(self.name)} --force`."
        where = f"{context.folder(self.name) / MANIFEST}"
        return from_json(self.result, dict(manifest.result), where, remedy=remedy, what="result")

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
            with saying_what_is_full(folder), context.invocation.completing_errors():
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


def _dotted(tree: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        tree = tree[part]
    return tree
