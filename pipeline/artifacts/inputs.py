"""What a stage declares to read, as data, and what the executor hands over by that: nothing else.

From one declaration come the digests that decide whether a result is up to date, and the files, images and keys that a
stage can reach. What was not declared cannot be read without an ``UndeclaredError``.
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
    """One declaration."""

    @property
    def files(self) -> Sequence[str]:
        """Patterns of the names below ``artifacts/<recipe>/`` that may be read by it."""
        ...

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """What of it decides the result: name to sha256.

        Args:
            context: of the recipe.
            recorded: the digests of the stage's former run.
        """
        ...


@dataclass(frozen=True)
class _Files:
    """Files by their names below ``artifacts/<recipe>/``.

    Attributes:
        pattern: such as ``train/model.json`` or ``build/*/*.plan``.
    """

    pattern: str

    @property
    def files(self) -> Sequence[str]:
        """The pattern."""
        return (self.pattern,)


class Required(_Files):
    """A file of an earlier stage that has to be there."""

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Its own.

        Raises:
            ProjectError: it is not there; with the command that makes it.
        """
        return context.required(self.pattern)


class Optional(_Files):
    """Files of earlier stages, as many as are there."""

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """One a file."""
        return context.files(self.pattern)


class Consulted(_Files):
    """Files that may be read and decide nothing.

    Such as a manifest that vouches for a file that does, a former result that spares work, or the folder that an
    interrupted run goes on from.
    """

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """None."""
        return {}


@dataclass(frozen=True)
class Split:
    """The images of a split.

    Attributes:
        name: of the split.
        minimum: the recipe's key that says how many there must be. Defaults to None: any number will do.
        decides: whether other images are another result. Defaults to True.
    """

    name: str
    minimum: str | None = None
    decides: bool = True
    files = ()

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """One of contents and labels, one of the classes; see ``Context.split``.

        Raises:
            DataMissingError: the images are not here, and neither is a former result that stands in.
        """
        return context.split(self.name, recorded) if self.decides else {}


@dataclass(frozen=True)
class Outside:
    """A file or folder that the recipe names, known by its content.

    Attributes:
        key: of the recipe.
    """

    key: str
    files = ()

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Its own, none where the recipe names no file.

        Raises:
            ProjectError: it is not here; see ``Context.external``.
        """
        path = value_at(context.recipe, self.key)
        if not isinstance(path, str):
            return {}
        if path == IMAGENET:
            return {self.key: f"{context.recipe.model.backbone} of keras.applications"}
        return context.external(self.key, path, recorded)


@dataclass(frozen=True)
class Derived:
    """What is made of files that change more often than what matters of them, or that name others.

    Attributes:
        files: patterns of their names.
        derive: gives the digests; gets all files below the artifacts and the digests of the former run.
    """

    files: Sequence[str]
    derive: Callable[[Artifacts, Mapping[str, str]], dict[str, str]]

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """Whatever is derived."""
        return self.derive(Artifacts(context.root, self.files), recorded)


@dataclass(frozen=True)
class CommandLine:
    """What repeats the recipe on a command line, for a stage that shows that."""

    files = ()

    def digests(self, context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
        """One of the overrides and of the recipe's place as seen from the artifacts, so that both can move together."""
        place = os.path.relpath(context.recipe_path, context.artifacts)
        return {"command line": sha256_json([Path(place).as_posix(), *context.overrides])}


@dataclass(frozen=True)
class Inputs(Artifacts):
    """What a stage declared, and nothing else.

    Attributes:
        digests: what of it decides the result: name to sha256.
        key: sha256 of all that decides the result: of these digests, the recipe's part, the code, the machine.
        find_images: gives the images; they may not be here where a former result stands in for them.
        command_line: where it was declared.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    find_images: Callable[[], ImageSet] | None = None
    command_line: Invocation | None = None

    @property
    def images(self) -> ImageSet:
        """The images of the declared splits.

        Raises:
            DataError: they are not here, or too few for a split that has a minimum.
            UndeclaredError: no split was declared.
        """
        if self.find_images is None:
            raise UndeclaredError("Expected a declared split of the images. Received: none.")
        return self.find_images()

    @property
    def invocation(self) -> Invocation:
        """What repeats the recipe on a command line.

        Raises:
            UndeclaredError: it was not declared.
        """
        if self.command_line is None:
            raise UndeclaredError("Expected the command line to be declared. Received: no such input.")
        return self.command_line


class DeclaredSplits(dict[str, Any]):
    """Samples by split; asking for one that was not declared is an error."""

    def __missing__(self, name: str) -> Any:
        raise UndeclaredError(f"Expected one of the declared splits {list(self)}. Received: {name}.")


class Part:
    """A section of a recipe of which only declared keys can be read; it stands in for the section.

    Args:
        section: the dataclass.
        keys: dotted names below it.
    """

    def __init__(self, section: Any, keys: Sequence[str]) -> None:
        self._section, self._keys = section, tuple(keys)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        below = [key.partition(".")[2] for key in self._keys if key.partition(".")[0] == name]
        if not below:
            raise UndeclaredError(f"Expected one of the declared keys {list(self._keys)}. Received: {name}.")
        value = getattr(self._section, name)
        return value if "" in below or not is_dataclass(value) else Part(value, below)


def declared_part(recipe: Recipe, keys: Sequence[str]) -> Recipe:
    """The recipe as far as it is declared; reading anything else of it raises ``UndeclaredError``.

    Args:
        recipe: all of it.
        keys: sections and dotted keys.
    """
    whole = all(one.name in keys for one in fields(recipe))
    return recipe if whole else cast("Recipe", Part(recipe, keys))


def value_at(section: object, key: str) -> Any:
    """The value of a dotted key; None where there is no such key."""
    for name in key.split("."):
        section = getattr(section, name, None)
    return section


def recipe_changes(manifest: Manifest | None, recipe: Recipe) -> list[str]:
    """What the recipe says now and did not when a stage ran, such as "train.seed: 1 -> 2"; nothing is hashed.

    Args:
        manifest: of the stage. None: it has not run, and nothing changed.
        recipe: in force.
    """
    return config_changes(manifest, recipe_slice(recipe, manifest.config)) if manifest else []
