"""What every stage of one recipe shares: the recipe in force, its artifacts, its images, and what is said once."""

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
from pipeline.data.dataset import ImageSet, deal
from pipeline.data.decode import DecodeSpec
from pipeline.data.sample import DataMissingError, Found, find_damaged, recorded_damage
from pipeline.data.sources import read_source
from pipeline.data.splits import check_split_sizes, needed_images
from pipeline.models.model_card import ModelCard, read_card, refuse_disagreement
from pipeline.recipe.load import override_tree, section_of
from pipeline.recipe.locate import where_else
from pipeline.recipe.model_rules import check_with_classes
from pipeline.recipe.rules import unread_by_finished
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.recipe.schema import Recipe
from pipeline.terminal.command_line import Invocation

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
            DataError: see ``pipeline.data.dataset.deal``.
        """
        return self._deal(recorded_damage(read_manifest(self.folder("train"))), ())

    @cached_property
    def _found(self) -> Found:
        return read_source(self.recipe.data)

    def _deal(self, damaged: Mapping[str, str], known: Sequence[Unreadable]) -> ImageSet:
        recipe = self.recipe
        images = deal(self._found, recipe.data, trains=not recipe.model.finished, damaged=damaged)
        images = in_model_order(images, model_names(recipe.model.classes))
        for level, line in images.log_lines(recipe.model.finished, known):
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
