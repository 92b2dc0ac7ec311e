"""The context that all stages of one recipe share: the recipe, its artifacts, its images, and its log messages."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from export.errors import ProjectError
from pipeline.artifacts.files import sha256_file, sha256_json, sha256_path
from pipeline.artifacts.manifest import read_manifest
from pipeline.artifacts.paths import CARD, Artifacts
from pipeline.artifacts.results import Unreadable
from pipeline.data.class_names import in_model_order, model_names
from pipeline.data.dataset import ImageSet, split_images
from pipeline.data.decode import DecodeSpec
from pipeline.data.sample import DataMissingError, SourceImages, find_damaged, recorded_damage
from pipeline.data.sources import read_source
from pipeline.data.splits import check_split_sizes, needed_images
from pipeline.models.model_card import ModelCard, read_card, refuse_disagreement
from pipeline.recipe.load import find_section, override_tree
from pipeline.recipe.locate import suggest_path
from pipeline.recipe.model_rules import check_with_classes
from pipeline.recipe.rules import unread_by_finished
from pipeline.recipe.schema import Recipe
from pipeline.terminal.command_line import Invocation

log = logging.getLogger(__name__)


@dataclass
class Context:
    """The context that all stages of one recipe share.

    Attributes:
        recipe: Recipe, including overrides.
        recipe_path: File of the recipe.
        artifacts: Folder of all recipes' artifacts.
        overrides: ``section.key=value`` strings of ``--set``, repeated in advice.
    """

    recipe: Recipe
    recipe_path: Path
    artifacts: Path
    overrides: Sequence[str] = ()
    _logged: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def root(self) -> Path:
        """``artifacts/<recipe>``."""
        return self.artifacts / self.recipe.name

    def folder(self, stage: str) -> Path:
        """``artifacts/<recipe>/<stage>``."""
        return self.root / stage

    @property
    def settings(self) -> Recipe:
        """The recipe for code that runs engines: building version-compatible ones permits their code for the CPU."""
        host_code = self.recipe.runtime.host_code or self.recipe.build.version_compatible
        return replace(self.recipe, runtime=replace(self.recipe.runtime, host_code=host_code))

    @property
    def invocation(self) -> Invocation:
        """Options that repeat this recipe on a command line."""
        return Invocation(self.recipe_path, self.artifacts, tuple(self.overrides))

    def command(self, verb: str, python: str | None = None) -> str:
        """Return the command that runs a verb with this recipe, see ``Invocation.command``."""
        return self.invocation.command(verb, python)

    def card(self) -> ModelCard:
        """Read the model's card, which has its classes and how images are decoded and preprocessed.

        Raises:
            ProjectError: The card is missing, damaged, or of an earlier version; with the command that writes it.
            ProjectError: The recipe contradicts it, or ``model.path`` is another file than the model was imported from.
        """
        self.required(CARD)
        with self.invocation.completing_errors():
            card = read_card(self.root / CARD)
        refuse_disagreement(self.recipe, card, self.command("train"))
        path, manifest = self.recipe.model.path, read_manifest(self.folder("train"))
        recorded = manifest.inputs.get("model.path") if manifest else None
        # The file is identified by its content. On another machine it may be missing.
        if path is not None and recorded and Path(path).exists() and sha256_path(Path(path)) != recorded:
            raise ProjectError(
                f"model.path: expected the file that the model was imported from (sha256 {recorded[:12]}...). "
                f"Received: {path}, which is another. Name that file, or import this one: `{self.command('train')}`."
            )
        return card

    @cached_property
    def images(self) -> ImageSet:
        """Labelled images and their splits, found and hashed once.

        Images found damaged when the model was trained are left out by every stage.

        Raises:
            DataError: See ``pipeline.data.dataset.split_images``.
        """
        return self._deal(recorded_damage(read_manifest(self.folder("train"))), ())

    @cached_property
    def _found(self) -> SourceImages:
        return read_source(self.recipe.data)

    def _deal(self, damaged: Mapping[str, str], known: Sequence[Unreadable]) -> ImageSet:
        recipe = self.recipe
        images = split_images(self._found, recipe.data, trains=not recipe.model.finished, damaged=damaged)
        images = in_model_order(images, model_names(recipe.model.classes))
        for level, line in images.log_lines(recipe.model.finished, known):
            self.say_once(level, line)
        return images

    def leave_out_damaged(self) -> bool:
        """Decode every image before the first stage runs, and leave out those that cannot be decoded.

        Returns:
            Whether the images left out differ from those before.

        Raises:
            DataError: There are too few images, or more unreadable ones than the recipe allows.
        """
        recipe, before = self.recipe, self.images
        for line in unread_by_finished(recipe):
            self.say_once(logging.WARNING, line)
        check_with_classes(recipe, len(before.classes))
        needed = needed_images(recipe, len(before.classes))
        check_split_sizes(before, needed)  # before the images are decoded, which takes time
        side, data = recipe.model.input_size, recipe.data
        decode = DecodeSpec((side, side), data.resize, jpeg_scaling=data.jpeg_scaling)
        self.images = self._deal(find_damaged(self._found.samples, decode), before.unreadable)
        check_split_sizes(self.images, needed)
        return self.images.unreadable != before.unreadable

    def say_once(self, level: int, message: str) -> None:
        """Log a message that every stage would otherwise repeat."""
        if message not in self._logged:
            self._logged.add(message)
            log.log(level, "%s", message)

    def files(self, pattern: str) -> dict[str, str]:
        """Return the sha256 of the existing files that match a pattern: ``{"stage/name": digest}``."""
        return {name: sha256_file(self.root / name) for name in Artifacts(self.root).matching(pattern)}

    def required(self, name: str) -> dict[str, str]:
        """Return the sha256 of a file that must exist: ``{"stage/name": digest}``.

        Raises:
            ProjectError: It does not exist; with the command that writes it.
        """
        path = self.root / name
        if not path.is_file():
            raise ProjectError(
                f"Expected {path}. Received: no such file. "
                f"Run `{self.command(name.partition('/')[0])}` first, or `run` for the whole chain."
            )
        return {name: sha256_file(path)}

    def split(self, name: str, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the digests of a split and of the classes, or the recorded ones if the data is not on this machine.

        Recorded digests replace only a path in the recipe, which may belong to another machine; a path in --set is
        always one of this machine.

        Args:
            name: Name of the split.
            recorded: Inputs in the stage's last manifest.

        Raises:
            DataMissingError: The data is not on this machine, and there is no recorded digest or --set names the data.
        """
        key = f"data/{name}"
        try:
            return {key: self.images.fingerprint(name), "data/classes": sha256_json(self.images.classes)}
        except DataMissingError as error:
            if key not in recorded or self._given_by_option("data.path", "data.classes"):
                raise
            why = f"{error}{suggest_path(str(error), self.recipe_path, self.overrides)}"
            self.say_once(
                logging.WARNING, f"the images are not on this machine; their recorded digests are used: {why}"
            )
            return {name: recorded[name] for name in (key, "data/classes")}

    def _given_by_option(self, *keys: str) -> bool:
        places = (find_section(override_tree(override), key) for override in self.overrides for key in keys)
        return any(key in section for section, key in places)

    def external(self, name: str, path: str, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the sha256 of a file or folder that the recipe names, or the recorded one if it does not exist here.

        Raises:
            ProjectError: It does not exist, and there is no recorded digest or --set names it.
        """
        if Path(path).exists():
            return {name: sha256_path(Path(path))}
        if name in recorded and not self._given_by_option(name):
            place = suggest_path(path, self.recipe_path, self.overrides)
            self.say_once(logging.WARNING, f"{path} does not exist; the recorded digest of {name} is used.{place}")
            return {name: recorded[name]}
        raise ProjectError(f"{name}: expected a file. Received: {path}, which does not exist.")
