"""Declarations of what a stage reads, and the inputs that it is given by them.

One declaration gives both the digests that decide whether a result is up to date, and the files, images and keys that
the stage can access. Access to anything else raises an ``UndeclaredError``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pipeline.artifacts.files import sha256_json
from pipeline.artifacts.manifest import Manifest, config_changes
from pipeline.artifacts.paths import Artifacts, UndeclaredError
from pipeline.recipe.load import recipe_slice
from pipeline.recipe.schema import IMAGENET, Recipe
from pipeline.terminal.command_line import Invocation

if TYPE_CHECKING:
    from pipeline.data.dataset import ImageSet
    from pipeline.workflow.context import Context


class Input(Protocol):
    """A declaration of something that a stage reads."""

    @property
    def files(self) -> Sequence[str]:
        """Patterns of the names in ``artifacts/<recipe>/`` that the stage may read."""

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the sha256, by name, of what decides the result.

        Args:
            context: Context of the recipe.
            recorded: Digests in the manifest of the stage's last run.
        """


@dataclass(frozen=True)
class _Files:
    """Files in ``artifacts/<recipe>/``.

    Attributes:
        pattern: Pattern of their names, such as ``train/model.json`` or ``build/*/*.plan``.
    """

    pattern: str

    @property
    def files(self) -> Sequence[str]:
        """The pattern."""
        return (self.pattern,)


class Required(_Files):
    """A file of an earlier stage that must exist."""

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the file's digest.

        Raises:
            ProjectError: The file does not exist; with the command that writes it.
        """
        return context.required(self.pattern)


class Optional(_Files):
    """Files of earlier stages that may be missing."""

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return one digest per existing file."""
        return context.files(self.pattern)


class Consulted(_Files):
    """Files that may be read and do not decide the result.

    Such as the manifest that records the digest of another input, an earlier result that saves work, or the folder
    from which an interrupted run resumes.
    """

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return no digests."""
        return {}


@dataclass(frozen=True)
class Split:
    """The images of a split.

    Attributes:
        name: Name of the split.
        minimum: Key of the recipe with the smallest number of images. Defaults to None: no minimum.
        decides: Whether the images decide the result. Defaults to True.
    """

    name: str
    minimum: str | None = None
    decides: bool = True
    files = ()

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return a digest of contents and labels and one of the classes, see ``Context.split``.

        Raises:
            DataMissingError: The images are not on this machine, and no recorded digest replaces theirs.
        """
        return context.split(self.name, recorded) if self.decides else {}


@dataclass(frozen=True)
class Outside:
    """A file or folder that the recipe names, identified by its content.

    Attributes:
        key: Dotted key of the recipe.
    """

    key: str
    files = ()

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the digest of its content; none where the recipe names no file.

        Raises:
            ProjectError: It does not exist; see ``Context.external``.
        """
        path = value_at(context.recipe, self.key)
        if not isinstance(path, str):
            return {}
        if path == IMAGENET:
            return {self.key: f"{context.recipe.model.backbone} of keras.applications"}
        return context.external(self.key, path, recorded)


@dataclass(frozen=True)
class Derived:
    """Digests derived from files of which only a part matters, or which name other files.

    Attributes:
        files: Patterns of the files' names.
        derive: Function from these artifacts and the digests of the last run to the digests.
    """

    files: Sequence[str]
    derive: Callable[[Artifacts, Mapping[str, str]], dict[str, str]]

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return the derived digests."""
        return self.derive(Artifacts(context.root, self.files), recorded)


@dataclass(frozen=True)
class CommandLine:
    """The command line that repeats the recipe, for a stage that shows it."""

    files = ()

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Return a digest of the overrides and the recipe's path relative to the artifacts, so that both can move."""
        place = Path(os.path.relpath(context.recipe_path, context.artifacts))
        return {"command line": sha256_json([place.as_posix(), *context.overrides])}


@dataclass(frozen=True)
class Inputs(Artifacts):
    """The declared inputs of a stage.

    Attributes:
        digests: sha256 by name of what decides the result.
        key: sha256 of everything that decides the result: these digests, the recipe's part, the code, the machine.
        find_images: Function that returns the images, which need not be on this machine; None if no split was declared.
        command_line: Command line that repeats the recipe; None if it was not declared.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    find_images: Callable[[], ImageSet] | None = None
    command_line: Invocation | None = None

    @property
    def images(self) -> ImageSet:
        """Images of the declared splits.

        Raises:
            DataError: They are not on this machine, or too few for a split with a minimum.
            UndeclaredError: No split was declared.
        """
        if self.find_images is None:
            raise UndeclaredError("Expected a declared split of the images. Received: none.")
        return self.find_images()

    @property
    def invocation(self) -> Invocation:
        """Command line that repeats the recipe.

        Raises:
            UndeclaredError: It was not declared.
        """
        if self.command_line is None:
            raise UndeclaredError("Expected the command line to be declared. Received: no such input.")
        return self.command_line


class DeclaredSplits(dict[str, Any]):
    """Samples by split; an undeclared split raises an ``UndeclaredError``."""

    def __missing__(self, name: str) -> Any:
        raise UndeclaredError(f"Expected one of the declared splits {list(self)}. Received: {name}.")


class Part:
    """Proxy of a recipe's section that gives only declared keys.

    Args:
        section: The dataclass.
        keys: Dotted keys within it.
    """

    def __init__(self, section: Any, keys: Sequence[str]) -> None:
        self._section, self._keys = section, tuple(keys)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        keys = [key.partition(".")[2] for key in self._keys if key.partition(".")[0] == name]
        if not keys:
            raise UndeclaredError(f"Expected one of the declared keys {list(self._keys)}. Received: {name}.")
        value = getattr(self._section, name)
        return value if "" in keys or not is_dataclass(value) else Part(value, keys)


def declared_part(recipe: Recipe, keys: Sequence[str]) -> Recipe:
    """Return the declared part of a recipe; reading anything else raises an ``UndeclaredError``.

    Args:
        recipe: The whole recipe.
        keys: Sections and dotted keys.
    """
    return recipe if all(item.name in keys for item in fields(recipe)) else cast("Recipe", Part(recipe, keys))


def value_at(section: object, key: str) -> Any:
    """Return the value of a dotted key; None if there is no such key."""
    for name in key.split("."):
        section = getattr(section, name, None)
    return section


def recipe_changes(manifest: Manifest | None, recipe: Recipe) -> list[str]:
    """List the recipe's keys that changed since a stage ran, such as "train.seed: 1 -> 2"; no file is hashed.

    Args:
        manifest: Manifest of the stage; None if it has not run, which gives no changes.
        recipe: The present recipe.
    """
    return config_changes(manifest, recipe_slice(recipe, manifest.config)) if manifest else []
