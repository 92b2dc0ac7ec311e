"""Where recipes lie, and the files that they name: a recipe by its name, and a path that was written from elsewhere."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.errors import ProjectError, RecipeError
from export.files import ROOT
from export.words import listed
from pipeline.recipe.limits import RECIPE_NAME
from pipeline.recipe.load import PATH_KEYS, override_tree, read_yaml, resolved, section_of
from pipeline.recipe.messages import inline_yaml, set_option
from pipeline.recipe.schema import Recipe
from pipeline.terminal.command_line import closest

RECIPES = Path("configs")
UNPACKED = "recipe.yaml"  # an unpacked archive brings it, beside the stages in artifacts/<name>


def find_recipe(given: Path, artifacts: Path) -> Path:
    """The file of a recipe that is named by its path, with or without ``.yaml``, or by its name alone.

    A file of exactly that path goes before ``configs/<name>.yaml``, and that before the one that an unpacked archive
    brought.

    Args:
        given: as it was typed.
        artifacts: folder of all recipes' artifacts.

    Raises:
        RecipeError: there is none, with those that there are.
    """
    places = [given.parent] + ([RECIPES] if given.parent == Path() else [])
    for folder in places:
        for name in (given.name, f"{given.name}.yaml", f"{given.name}.yml"):
            if (path := folder / name).is_file():
                return path
    unpacked = artifacts / given.name / UNPACKED
    if given.parent == Path() and RECIPE_NAME.fullmatch(given.name) and unpacked.is_file():
        return unpacked
    folder = next((folder for folder in reversed(places) if folder.is_dir()), given.parent)
    known = sorted(path.stem for path in folder.glob("*.yaml")) if folder.is_dir() else []
    hint = f" Recipes in {folder}: {listed(known, most=12)}." if known else ""
    if close := closest(given.stem, known, cutoff=0.6):
        hint += f" Did you mean {close if given.parent == Path() else folder / f'{close}.yaml'}?"
    elsewhere = ROOT / RECIPES / f"{given.name.removesuffix('.yaml')}.yaml"
    if given.parent in (Path(), RECIPES) and elsewhere.is_file():
        hint = f" There is {elsewhere}: commands run from the repository's root (cd {ROOT})."
    what = "a folder" if given.is_dir() else "which does not exist"
    raise RecipeError(f"Expected a recipe file, or the name of one. Received: {given}, {what}.{hint}")


def refuse_a_taken_name(recipe: Recipe, path: Path, artifacts: Path, overrides: Sequence[str]) -> None:
    """Refuse a copy of a recipe that still has the ``name`` of the one it was copied from: both write to one folder.

    Raises:
        RecipeError: with the line to change.
    """
    unpacked = path.resolve().parent == (artifacts / recipe.name).resolve()  # an archive brings its recipe there
    if path.stem == recipe.name or unpacked or any("name" in override_tree(override) for override in overrides):
        return
    for folder in dict.fromkeys((path.parent, RECIPES)):
        other = folder / f"{recipe.name}.yaml"
        is_another = other.is_file() and other.resolve() != path.resolve()
        if is_another and read_yaml(other).get("name", other.stem) == recipe.name:
            raise RecipeError(
                f"name: expected another than that of {other}, because each recipe writes to artifacts/<name>, and "
                f"this would replace its results. Received: name: {recipe.name} in {path}. Leave that line out, so "
                f"that the file's own name, {path.stem}, is taken; or add --set name={path.stem}"
            )


@dataclass(frozen=True)
class _Written:
    """A path as somebody wrote it: from where it counts, and the other place from where it may have been meant."""

    key: str
    text: str
    base: Path
    other: Path
    by_option: bool


def where_else(message: str, recipe_path: Path, overrides: Sequence[str]) -> str:
    """What to write instead of a path that a message names as missing, where it exists from the other place.

    Args:
        message: any that names the missing path in full.
        recipe_path: file of the recipe; its paths are relative to it.
        overrides: those of ``--set``; their paths are relative to the working directory.

    Returns:
        A sentence that follows the message; empty where there is nothing to say.
    """
    try:
        written = _written(recipe_path, overrides)
    except (ProjectError, OSError):
        return ""
    for path in written:
        try:
            here = Path(resolved(path.text, path.base, path.key))
        except RecipeError:  # no path at all, which is what the message says
            continue
        there = Path(os.path.normpath(path.other / Path(path.text).expanduser()))  # links stay as they are named
        if str(here) not in message or here.exists() or not there.exists():
            continue
        if path.by_option:
            line = set_option(path.key, os.path.relpath(there))
            return f" It exists beside the recipe; a path in --set is relative to the working directory. Write: {line}"
        section, _, key = path.key.rpartition(".")
        line = f"{key}: {inline_yaml(os.path.relpath(there, path.base))}"
        return (
            f" It exists in the working directory; a path in a recipe is relative to the recipe's file. "
            f"Write in {recipe_path}, below {section}: {line}"
        )
    return ""


def _written(recipe_path: Path, overrides: Sequence[str]) -> list[_Written]:
    """The paths in force: the last one that was given of each key."""
    folder, here = recipe_path.resolve().parent, Path.cwd()
    last: dict[str, _Written] = {}
    trees = [read_yaml(recipe_path), *map(override_tree, overrides)]
    for (place, tree), dotted in itertools.product(enumerate(trees), PATH_KEYS):
        section, key = section_of(tree, dotted)
        if key in section:
            last.pop(dotted, None)
        if isinstance(section.get(key), str):
            base, other = (here, folder) if place else (folder, here)
            last[dotted] = _Written(dotted, section[key], base, other, place > 0)
    return list(last.values())
