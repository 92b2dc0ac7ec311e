"""Find recipes by name, and suggest the right path where a recipe or ``--set`` names a missing file."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from export.errors import ProjectError, RecipeError
from export.files import ROOT
from export.words import listed
from pipeline.recipe.limits import RECIPE_NAME
from pipeline.recipe.load import PATH_KEYS, find_section, override_tree, read_yaml, resolve_path
from pipeline.recipe.messages import inline_yaml, set_option
from pipeline.recipe.schema import Recipe
from pipeline.terminal.command_line import closest

RECIPES = Path("configs")
UNPACKED = "recipe.yaml"  # in artifacts/<name> of an unpacked archive


def find_recipe(given: Path, artifacts: Path) -> Path:
    """Find a recipe's file from its path, with or without ``.yaml``, or from its name alone.

    The path itself takes precedence over ``configs/<name>.yaml``, and that over the recipe of an unpacked archive.

    Args:
        given: Path or name as it was typed.
        artifacts: Folder of all recipes' artifacts.

    Raises:
        RecipeError: There is no such recipe; with those that exist.
    """
    places = [given.parent] + ([RECIPES] if given.parent == Path() else [])
    paths = [folder / f"{given.name}{ending}" for folder in places for ending in ("", ".yaml", ".yml")]
    if given.parent == Path() and RECIPE_NAME.fullmatch(given.name):
        paths.append(artifacts / given.name / UNPACKED)
    if recipe := next((path for path in paths if path.is_file()), None):
        return recipe
    folder = next((folder for folder in reversed(places) if folder.is_dir()), given.parent)
    known = sorted(path.stem for path in folder.glob("*.yaml")) if folder.is_dir() else []
    hint = f" Recipes in {folder}: {listed(known, most=12)}." if known else ""
    if close := closest(given.stem, known, cutoff=0.6):
        hint += f" Did you mean {close if given.parent == Path() else folder / f'{close}.yaml'}?"
    elsewhere = ROOT / RECIPES / f"{given.name.removesuffix('.yaml')}.yaml"
    if given.parent in (Path(), RECIPES) and elsewhere.is_file():
        hint = f" There is {elsewhere}: commands run from the repository's root (cd {ROOT})."
    received = f"{given}, {'a folder' if given.is_dir() else 'which does not exist'}"
    raise RecipeError(f"Expected a recipe file, or the name of one. Received: {received}.{hint}")


def refuse_name_in_use(recipe: Recipe, path: Path, artifacts: Path, overrides: Sequence[str]) -> None:
    """Refuse a copy of a recipe with the ``name`` of the original, because both would write to one folder.

    Raises:
        RecipeError: With the line to change.
    """
    unpacked = path.resolve().parent == (artifacts / recipe.name).resolve()  # the recipe of an unpacked archive
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


def suggest_path(message: str, recipe_path: Path, overrides: Sequence[str]) -> str:
    """Suggest what to write for a missing path that exists relative to the other folder.

    Args:
        message: Message that contains the missing path in full.
        recipe_path: File of the recipe; its paths are relative to it.
        overrides: Values of ``--set``; their paths are relative to the working directory.

    Returns:
        A sentence that follows the message, starting with a space; empty where there is nothing to suggest.
    """
    try:
        folder, working = recipe_path.resolve().parent, Path.cwd()
        written = _written(recipe_path, overrides)
    except (ProjectError, OSError):
        return ""
    for dotted, (text, by_option) in written.items():
        base, other = (working, folder) if by_option else (folder, working)
        try:
            missing = Path(resolve_path(text, base, dotted))
        except RecipeError:  # not a path, which the message says
            continue
        existing = Path(os.path.normpath(other / Path(text).expanduser()))  # symbolic links are kept
        if str(missing) not in message or missing.exists() or not existing.exists():
            continue
        if by_option:
            line = set_option(dotted, os.path.relpath(existing))
            return f" It exists beside the recipe; a path in --set is relative to the working directory. Write: {line}"
        section, _, key = dotted.rpartition(".")
        line = f"{key}: {inline_yaml(os.path.relpath(existing, base))}"
        return (
            f" It exists in the working directory; a path in a recipe is relative to the recipe's file. "
            f"Write in {recipe_path}, below {section}: {line}"
        )
    return ""


def _written(recipe_path: Path, overrides: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Return the last path that was given for each key, as it was written, and whether --set gave it."""
    last: dict[str, tuple[str, bool]] = {}
    trees = [read_yaml(recipe_path), *map(override_tree, overrides)]
    for (index, tree), dotted in itertools.product(enumerate(trees), PATH_KEYS):
        section, key = find_section(tree, dotted)
        if key in section:
            last.pop(dotted, None)
        if isinstance(section.get(key), str):
            last[dotted] = (section[key], index > 0)
    return last
