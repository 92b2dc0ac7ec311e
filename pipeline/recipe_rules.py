"""What keys of a recipe ask of each other, and of what its fields cannot say alone."""

from __future__ import annotations

import re

from pipeline.backbones import BACKBONES, LARGEST_INPUT
from pipeline.bounded_yaml import shown
from pipeline.errors import RecipeError
from pipeline.model_settings import check_model
from pipeline.pattern_work import takes_too_long
from pipeline.recipe import Recipe
from pipeline.unread_keys import refuse_unread

SMALLEST_INPUT = 32
# <name>[/<config>][:<version>], without the namespaces whose code that package would fetch from elsewhere and run
TFDS_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}(/[A-Za-z0-9_.+-]{1,100})?(:(\d+|\*)(\.(\d+|\*)){2})?")


def check_rules(recipe: Recipe) -> None:
    """Refuse values that each are fine and no stage can use together.

    Raises:
        RecipeError: with the key, what was expected and what was received.
        ModelError: the same, of a backbone and what does not go with it.
    """
    data, model, build = recipe.data, recipe.model, recipe.build
    if data.source in ("folder", "csv", "npz") and data.path is None and data.download is None:
        raise _unfit("data.path", f"a path (data.source is {data.source})", None)
    if data.source == "tfds" and not TFDS_NAME.fullmatch(data.tfds or ""):
        form = "a data set of tensorflow-datasets itself, as name, name/config or name:1.0.0"
        raise _unfit("data.tfds", form, data.tfds)
    if data.label_pattern is not None:
        _check_pattern(data.label_pattern)
    smallest, whose = SMALLEST_INPUT, ""
    if model.path is None:
        smallest, whose = BACKBONES[model.backbone].smallest, f" for {model.backbone}"
    if not smallest <= model.input_size <= LARGEST_INPUT:
        raise _unfit("model.input_size", f"{smallest} to {LARGEST_INPUT}{whose}", model.input_size)
    if build.strip_weights and build.version_compatible:
        raise _unfit("build", "strip_weights or version_compatible", "both: a lean runtime cannot put weights back")
    for where, section in (("quantize", recipe.quantize), ("verify", recipe.verify)):
        if section.max_images < section.min_images:
            least = f"at least {where}.min_images ({section.min_images})"
            raise _unfit(f"{where}.max_images", least, section.max_images)
    refuse_unread(recipe)
    check_model(model)


def _unfit(where: str, expected: str, received: object) -> RecipeError:
    return RecipeError(f"{where}: expected {expected}. Received: {shown(received)}.")


def _check_pattern(pattern: str) -> None:
    try:
        groups, slow = re.compile(pattern).groups, takes_too_long(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise RecipeError(
            f"data.label_pattern: expected a regular expression. Received: {shown(pattern)} ({error})."
        ) from error
    if groups < 1:
        raise RecipeError(
            f"data.label_pattern: expected a regular expression with a group. Received: {shown(pattern)}."
        )
    if slow:
        raise RecipeError(
            "data.label_pattern: expected a regular expression that is searched for in little time: no repetition "
            "inside a repetition, and up to three (four behind a ^) side by side. "
            f"Received: {shown(pattern)}. Repeat a set instead of a group, as [a-z_]+ for ([a-z]+_)+, and leave out "
            "what follows the class."
        )
