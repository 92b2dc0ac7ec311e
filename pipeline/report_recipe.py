"""The report's section on the recipe: what was asked, what of it differs from the defaults, and the command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pipeline.command_line import ARTIFACTS, Invocation
from pipeline.config import SECTIONS, recipe_slice
from pipeline.html import Cell, Section, Table, section
from pipeline.manifest import Manifest
from pipeline.recipe import Recipe
from pipeline.words import count

DEFAULT_RECIPE = "digits"  # of the Makefile


def recipe_section(recipe: Recipe, invocation: Invocation, verify: Manifest | None) -> Section:
    """The section; paths and permissions, which decide no result, are left to the recipe file."""
    asked, usual = (_flat(recipe_slice(one, SECTIONS)) for one in (recipe, Recipe(recipe.name)))
    changed = [
        tuple(Cell(_shown(cell), code=True) for cell in (name, asked.get(name), usual.get(name)))
        for name in sorted(asked.keys() | usual.keys())
        if asked.get(name) != usual.get(name)
    ]
    return section(
        "Recipe",
        "recipe.html.j2",
        name=recipe.name,
        file=invocation.recipe_path.name,
        command=make(invocation, "run", verify),
        changed=Table(("key", "here", "default"), changed, titled=False),
    )


def make(invocation: Invocation, target: str, verify: Manifest | None = None) -> str:
    """The command line for a target of the Makefile, or, where it does not know the recipe, for the same verb.

    Args:
        invocation: recipe, overrides, artifacts.
        target: such as ``run``; each that is asked for is a verb of ``python -m pipeline`` too.
        verify: the record of the verify stage: where it saw a GPU, the GPU's environment is named.
    """
    path, name = invocation.recipe_path, invocation.recipe_path.stem
    words = invocation.options
    known = path == Path("configs") / f"{name}.yaml" and shlex.quote(name) == name and invocation.artifacts == ARTIFACTS
    if not known or any("\n" in word for word in words):
        return invocation.command(target, "python")
    gpu = "GPU=1 " if verify is not None and verify.environment.get("gpu") else ""
    recipe = "" if name == DEFAULT_RECIPE else f"RECIPE={name} "
    # The shell takes the outer quotes off, make a dollar, and the shell that make starts the inner quotes.
    arguments = f"ARGS={shlex.quote(shlex.join(words).replace('$', '$$'))} " if words else ""
    return f"{gpu}{recipe}{arguments}make {target}"


def make_with(invocation: Invocation, overrides: Sequence[str], target: str, verify: Manifest | None) -> str:
    """`make` with other values of the recipe: an override that is there already is replaced, not repeated."""
    keys = {override.partition("=")[0].strip() for override in overrides}
    kept = [one for one in invocation.overrides if one.partition("=")[0].strip() not in keys]
    return make(replace(invocation, overrides=[*kept, *overrides]), target, verify)


def when(verify: Manifest | None) -> str:
    """When the verdict was given, for people; "" where its record does not say."""
    try:
        moment = datetime.fromisoformat(verify.finished if verify else "")
        moment = moment.astimezone(timezone.utc) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        return ""
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _shown(value: Any) -> str:
    """A value as a recipe writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]" if len(value) <= 20 else count(len(value), "value")
    return value if isinstance(value, str) else json.dumps(value)
