"""Rules between the keys of a recipe, and a bound on the time that its regular expression may take.

A key that the recipe's source of images or form of model does not read is refused, because it would silently have no
effect. Keys of the training may stay in a recipe with a finished model; one warning names them.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from export.errors import RecipeError
from pipeline.recipe.backbones import BACKBONES, LARGEST_INPUT
from pipeline.recipe.messages import describe_path, format_value, set_option
from pipeline.recipe.model_rules import check_model
from pipeline.recipe.schema import TRAINED_WITH, Data, Model, Recipe, Splits, Train

# The parser's tree is not public, but nothing else gives the repetitions of a pattern.
if sys.version_info >= (3, 11):
    import re._parser as parser
else:
    import sre_parse as parser

LONGEST_NAME = 255  # characters of a file's name
MOST_WAYS = 8 * LONGEST_NAME**4  # a free start and three repetitions, or four after a "^"; seconds in the worst case
# Where the parser's node of a group holds the patterns inside it.
_INNER = {"SUBPATTERN": slice(3, 4), "GROUPREF_EXISTS": slice(1, 3), "ASSERT": slice(1, 2), "ASSERT_NOT": slice(1, 2)}


def takes_too_long(pattern: str) -> bool:
    """Return whether searching a file's name for a pattern may take more than a few seconds.

    Python tries every way to match, of which a pattern can have 2^255. The estimate is an upper bound that ignores
    which characters are matched: a nested repetition always has too many ways.

    Raises:
        re.error, OverflowError, RecursionError: It is not a regular expression.
    """
    tree: Any = parser.parse(pattern)
    anchored = len(tree) > 0 and str(tree[0][1]) in ("AT_BEGINNING", "AT_BEGINNING_STRING")
    return _ways(tree) * (1 if anchored else LONGEST_NAME) > MOST_WAYS


def _ways(tree: Iterable[tuple[Any, Any]]) -> int:
    ways = 1
    for kind, value in tree:
        ways = min(ways * _ways_of(str(kind), value), MOST_WAYS + 1)  # capped, so that the numbers stay small
    return ways


def _ways_of(kind: str, value: Any) -> int:
    if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        return _ways_of_repeating(*value)
    if kind == "BRANCH":
        return sum(map(_ways, value[1]))
    if kind in _INNER:
        return sum(_ways(part) for part in value[_INNER[kind]] if part is not None)
    return _ways(value) if kind == "ATOMIC_GROUP" else 1


def _ways_of_repeating(least: int, most: int, item: Any) -> int:
    ways = _ways(item)
    fewest, highest = min(least, LONGEST_NAME), min(most, LONGEST_NAME)
    idle = 1 if item.getwidth()[0] else max(least, 1)  # repeating an empty match takes time too
    return int((highest - fewest + 1) * ways**highest * idle)


SMALLEST_INPUT = 32
# <name>[/<config>][:<version>], without the namespaces whose code that package would fetch from elsewhere and run
TFDS_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}(/[A-Za-z0-9_.+-]{1,100})?(:(\d+|\*)(\.(\d+|\*)){2})?")
FILES = ("folder", "csv", "npz")
READ_BY = {  # not data.max_bad_images, which holds for every source: images in arrays are always readable
    "path": (*FILES, "tfds"),
    "download": ("folder", "npz"),
    "tfds": ("tfds",),
    "label_pattern": ("folder",),
    "columns": ("csv",),
    "classes": FILES,
    "ready_splits": (*FILES, "tfds"),
    "divide": (*FILES, "tfds"),
}
DOWNLOADS = {"flowers": "folder", "mnist": "npz"}
PATH_ONLY = ("output", "allow", "called_in_training")
NEVER_BY_PATH = ("backbone", "weights", "head")
NOT_TRAINED = ("padding", "pooling", "dense", "dropout")
WITH_STEM = tuple(name for name, entry in BACKBONES.items() if entry.layers not in (0, 20))  # 20 has a 3x3 one


def check_rules(recipe: Recipe) -> None:
    """Refuse values that are valid alone but not together.

    Raises:
        RecipeError: With the key, what was expected and what was received.
        ModelError: The same, for settings that the backbone does not support.
    """
    data, model, build = recipe.data, recipe.model, recipe.build
    smallest, whose = SMALLEST_INPUT, ""
    if model.path is None:
        smallest, whose = BACKBONES[model.backbone].smallest, f" for {model.backbone}"
    rules = (  # whether it holds, the key, what was expected, what was received
        (
            data.source not in FILES or data.path is not None or data.download is not None,
            *("data.path", f"a path (data.source is {data.source})", None),
        ),
        (
            data.source != "tfds" or TFDS_NAME.fullmatch(data.tfds or ""),
            *("data.tfds", "a data set of tensorflow-datasets itself, as name, name/config or name:1.0.0", data.tfds),
        ),
        (
            smallest <= model.input_size <= LARGEST_INPUT,
            *("model.input_size", f"{smallest} to {LARGEST_INPUT}{whose}", model.input_size),
        ),
        (
            not (build.strip_weights and build.version_compatible),
            *("build", "strip_weights or version_compatible", "both: a lean runtime cannot put weights back"),
        ),
        *(
            (
                section.max_images >= section.min_images,
                *(f"{name}.max_images", f"at least {name}.min_images ({section.min_images})", section.max_images),
            )
            for name, section in (("quantize", recipe.quantize), ("verify", recipe.verify))
        ),
    )
    for holds, where, expected, received in rules:
        if not holds:
            raise RecipeError(f"{where}: expected {expected}. Received: {format_value(received)}.")
    if data.label_pattern is not None:
        _check_pattern(data.label_pattern)
    refuse_unread(recipe)
    check_model(model)


def _check_pattern(pattern: str) -> None:
    try:
        groups, slow = re.compile(pattern).groups, takes_too_long(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise RecipeError(
            f"data.label_pattern: expected a regular expression. Received: {format_value(pattern)} ({error})."
        ) from error
    if groups < 1:
        raise RecipeError(
            f"data.label_pattern: expected a regular expression with a group. Received: {format_value(pattern)}."
        )
    if slow:
        raise RecipeError(
            "data.label_pattern: expected a regular expression that is searched for in little time: no repetition "
            "inside a repetition, and up to three (four after a ^) side by side. "
            f"Received: {format_value(pattern)}. Repeat a set instead of a group, as [a-z_]+ for ([a-z]+_)+, and "
            "leave out what follows the class."
        )


def refuse_unread(recipe: Recipe) -> None:
    """Refuse keys that are set and that nothing reads.

    Raises:
        RecipeError: With the key, and the recipe or the setting that reads it.
    """
    data, model, source = recipe.data, recipe.model, recipe.data.source
    for key, readers in READ_BY.items():
        value = getattr(data, key)
        if source not in readers and value != getattr(Data(), key):
            raise RecipeError(
                f"data.path: expected none with data.source {source}, whose images come with a package. "
                f"Received: {value}, {_which_recipe(Path(value))}"
                if key == "path"
                else f"data.{key}: expected with data.source {' or '.join(readers)}, which reads it. "
                f"Received: {_plain(value)} with data.source {source}. Leave it out, or set the source that is meant."
            )
    if data.download is not None and data.path is None and DOWNLOADS[data.download] != source:
        raise RecipeError(
            f"data.download: expected data.source {DOWNLOADS[data.download]} for {data.download}. Received: {source}. "
            f"Set data.source={DOWNLOADS[data.download]}."
        )
    for key in PATH_ONLY:
        if model.path is None and (value := getattr(model, key)) != getattr(Model(), key):
            raise RecipeError(
                f"model.{key}: expected with model.path, whose file it is about. Received: {_plain(value)} without "
                "one. Leave it out, or name the file: --set model.path=..."
            )
    if not model.finished and model.padding != "same" and model.backbone not in WITH_STEM:
        raise RecipeError(
            f"model.padding: expected with a backbone of {', '.join(WITH_STEM)}, which have such a stem. "
            f"Received: {model.padding} with {model.backbone}. Leave it out."
        )


def unread_by_finished(recipe: Recipe) -> Iterator[str]:
    """Yield one line that names the keys of a training that are set although the model is finished."""
    data, model = recipe.data, recipe.model
    by_path = model.path is not None
    keys = (*NEVER_BY_PATH, *NOT_TRAINED) if by_path else NOT_TRAINED
    names = [
        *(f"model.{key}" for key in keys if getattr(model, key) != getattr(Model(), key)),
        *(f"train.{key}" for key, default in vars(Train()).items() if getattr(recipe.train, key) != default),
        *(f"data.splits.{key}" for key in TRAINED_WITH if vars(data.splits)[key] not in (0, vars(Splits())[key])),
        *(
            f"data.divide.{ready}.{key}"
            for ready, shares in vars(data.divide).items()
            for key in TRAINED_WITH
            if vars(shares)[key]
        ),
    ]
    if model.finished and names:
        why = "model.path" if by_path else "model.head: published"
        yield f"not used, because the model is finished ({why}) and nothing is trained: {', '.join(names)}"


def _which_recipe(path: Path) -> str:
    if path.is_dir() and not any(path.glob("*.csv")):
        return f"a folder. The recipe photos takes one: -c configs/photos.yaml {set_option('data.path', path)}"
    hint = "" if path.exists() else " The recipe photos takes a folder: -c configs/photos.yaml --set data.path=..."
    return f"{describe_path(path)}{hint}"


def _plain(value: Any) -> str:
    return format_value(list(value) if isinstance(value, tuple) else value)
