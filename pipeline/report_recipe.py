"""The report's section on the recipe: what was asked, what of it differs from the defaults, and the command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pipeline.command_line import ARTIFACTS
from pipeline.config import SECTIONS, recipe_slice
from pipeline.html import Section, command, details, table, text
from pipeline.manifest import Manifest
from pipeline.recipe import Recipe
from pipeline.stage import Context
from pipeline.words import count

DEFAULT_RECIPE = "digits"  # of the Makefile


def recipe_section(context: Context, verify: Manifest | None) -> Section:
    """The section; paths and permissions, which decide no result, are left to the recipe file."""
    recipe = context.recipe
    asked, usual = (_flat(recipe_slice(one, SECTIONS)) for one in (recipe, Recipe(recipe.name)))
    changed = [name for name in sorted(asked.keys() | usual.keys()) if asked.get(name) != usual.get(name)]
    rows = [
        tuple(f"<code>{text(_shown(cell))}</code>" for cell in (name, asked.get(name), usual.get(name)))
        for name in changed
    ]
    differ = count(len(changed), "key differs", "keys differ")
    words = (
        f"{text(recipe.name)}, from {command(context.recipe_path.name)}: {differ} from the defaults, besides paths and "
        f"permissions. Made by {command(make(context, 'run', verify))}."
    )
    listed = (
        details(f"{differ} from the defaults", table(("key", "here", "default"), rows, titled=False)) if rows else ""
    )
    return Section("Recipe", words, listed)


def make(context: Context, target: str, verify: Manifest | None = None) -> str:
    """The command line for a target of the Makefile, or, where it does not know the recipe, for the same verb.

    Args:
        context: recipe, overrides, artifacts.
        target: such as ``run``; each that is asked for is a verb of ``python -m pipeline`` too.
        verify: the record of the verify stage: where it saw a GPU, the GPU's environment is named.
    """
    path, name = context.recipe_path, context.recipe_path.stem
    words = context.options
    known = path == Path("configs") / f"{name}.yaml" and shlex.quote(name) == name and context.artifacts == ARTIFACTS
    if not known or any("\n" in word for word in words):
        return context.command(target, "python")
    gpu = "GPU=1 " if verify is not None and verify.environment.get("gpu") else ""
    recipe = "" if name == DEFAULT_RECIPE else f"RECIPE={name} "
    # The shell takes the outer quotes off, make a dollar, and the shell that make starts the inner quotes.
    arguments = f"ARGS={shlex.quote(shlex.join(words).replace('$', '$$'))} " if words else ""
    return f"{gpu}{recipe}{arguments}make {target}"


def make_with(context: Context, overrides: Sequence[str], target: str, verify: Manifest | None) -> str:
    """`make` with other values of the recipe: an override that is there already is replaced, not repeated."""
    keys = {override.partition("=")[0].strip() for override in overrides}
    kept = [one for one in context.overrides if one.partition("=")[0].strip() not in keys]
    changed = Context(context.recipe, context.recipe_path, context.artifacts, [*kept, *overrides])
    return make(changed, target, verify)


def when(verify: Manifest | None) -> str:
    """When the verdict was given, for people; "" where its record does not say."""
    try:
        moment = datetime.fromisoformat(verify.finished if verify else "")
        moment = moment.astimezone(timezone.utc) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        return ""
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _shown(value: Any) -> str:
    """A value as a recipe writes it."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]" if len(value) <= 20 else count(len(value), "value")
    return str(value)
