"""What keys of a recipe ask of each other, and how long a pattern in it may take.

How long a regular expression may take: Python tries every way to match, and patterns exist that have 2^255.

What keys of a recipe ask of each other, and of what its fields cannot say alone.

What was set and is not read by the recipe's source of images, or for its form of a model, would be ignored in silence.
Keys that somebody sets to change the images, or how a model file is read, are refused by name. What describes a
training stays in many a recipe that takes a finished model for once, so it is named in one warning.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.errors import RecipeError
from pipeline.recipe.backbones import BACKBONES, LARGEST_INPUT
from pipeline.recipe.messages import set_option, shown
from pipeline.recipe.model_rules import check_model
from pipeline.recipe.schema import Data, Model, Recipe, Splits, Train

# The parser's tree is not public, and only there are the repetitions.
if sys.version_info >= (3, 11):
    import re._parser as parser
else:
    import sre_parse as parser

LONGEST_NAME = 255  # characters of a file's name
MOST_WAYS = 8 * LONGEST_NAME**4  # a free start and three repetitions, or four behind a "^"; seconds at the very worst


def takes_too_long(pattern: str) -> bool:
    """Whether searching a file's name for a pattern may take more than some seconds.

    What is estimated is an upper bound of the ways that the pattern can be laid over a name; it knows nothing of the
    characters. A repetition inside a repetition has too many ways, whatever it repeats.

    Raises:
        re.error, OverflowError, RecursionError: it is no regular expression.
    """
    parsed: Any = parser.parse(pattern)
    tree = list(parsed)
    anchored = bool(tree) and str(tree[0][1]) in ("AT_BEGINNING", "AT_BEGINNING_STRING")
    return _ways(tree) * (1 if anchored else LONGEST_NAME) > MOST_WAYS


def _ways(tree: Iterable[tuple[Any, Any]]) -> int:
    ways = 1
    for kind, value in tree:
        ways = min(ways * _ways_of(str(kind), value), MOST_WAYS + 1)  # more is too many, and numbers stay small
    return ways


def _ways_of(kind: str, value: Any) -> int:
    if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        return _ways_of_repeating(*value)
    if kind == "BRANCH":
        return sum(map(_ways, value[1]))
    if kind == "SUBPATTERN":
        return _ways(value[3])
    if kind == "GROUPREF_EXISTS":
        return sum(_ways(part) for part in value[1:] if part is not None)
    if kind in ("ASSERT", "ASSERT_NOT"):
        return _ways(value[1])
    return _ways(value) if kind == "ATOMIC_GROUP" else 1


def _ways_of_repeating(least: int, most: int, item: Any) -> int:
    ways = _ways(item)
    fewest, highest = min(least, LONGEST_NAME), min(most, LONGEST_NAME)
    ends = highest - fewest + 1
    idle = 1 if item.getwidth()[0] else max(least, 1)  # repeating nothing takes time too
    return int(ends * ways**highest * idle)


SMALLEST_INPUT = 32
# <name>[/<config>][:<version>], without the namespaces whose code that package would fetch from elsewhere and run
TFDS_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}(/[A-Za-z0-9_.+-]{1,100})?(:(\d+|\*)(\.(\d+|\*)){2})?")
FILES = ("folder", "csv", "npz")
READ_BY = {  # data.max_bad_images is not here: images in arrays are all readable, so it is true of any source
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
    """Refuse values that each are fine and no stage can use together.

    Raises:
        RecipeError: with the key, what was expected and what was received.
        ModelError: the same, of a backbone and what does not go with it.
    """
    data, model, build = recipe.data, recipe.model, recipe.build
    smallest, whose = SMALLEST_INPUT, ""
    if model.path is None:
        smallest, whose = BACKBONES[model.backbone].smallest, f" for {model.backbone}"
    rules = (  # whether it is kept, the key, what was expected, what was received
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
    for kept, where, expected, received in rules:
        if not kept:
            raise RecipeError(f"{where}: expected {expected}. Received: {shown(received)}.")
    if data.label_pattern is not None:
        _check_pattern(data.label_pattern)
    refuse_unread(recipe)
    check_model(model)


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


def refuse_unread(recipe: Recipe) -> None:
    """Refuse keys that were set and that nothing reads.

    Raises:
        RecipeError: with the key, and the recipe or the setting that it fits.
    """
    data, model, source = recipe.data, recipe.model, recipe.data.source
    for key, readers in READ_BY.items():
        value = getattr(data, key)
        if source in readers or value == getattr(Data(), key):
            continue
        if key == "path":
            raise RecipeError(
                f"data.path: expected none with data.source {source}, whose images come with a package. "
                f"Received: {value}, {_which_recipe(Path(value))}"
            )
        raise RecipeError(
            f"data.{key}: expected with data.source {' or '.join(readers)}, which reads it. "
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
    """A line that names what was set about a training that does not take place."""
    from pipeline.recipe.schema import TRAINED_WITH  # it needs NumPy, and recipes are read without

    data, model = recipe.data, recipe.model
    if not model.finished:
        return
    keys = (*NEVER_BY_PATH, *NOT_TRAINED) if model.path is not None else NOT_TRAINED
    names = [f"model.{key}" for key in keys if getattr(model, key) != getattr(Model(), key)]
    changed, defaults = asdict(recipe.train), asdict(Train())
    names += [f"train.{key}" for key in changed if changed[key] != defaults[key]]
    names += [
        f"data.splits.{key}" for key in TRAINED_WITH if getattr(data.splits, key) not in (0, getattr(Splits(), key))
    ]
    names += [
        f"data.divide.{ready}.{key}"
        for ready, shares in vars(data.divide).items()
        for key in TRAINED_WITH
        if vars(shares)[key]
    ]
    if names:
        why = "model.path" if model.path is not None else "model.head: published"
        yield f"not used, because the model is finished ({why}) and nothing is trained: {', '.join(names)}"


def _which_recipe(path: Path) -> str:
    from pipeline.recipe.messages import what_it_is  # it needs Pillow, and recipes are read without

    if path.is_dir() and not any(path.glob("*.csv")):
        return f"a folder. The recipe photos takes one: -c configs/photos.yaml {set_option('data.path', path)}"
    if not path.exists():
        return f"{what_it_is(path)} The recipe photos takes a folder: -c configs/photos.yaml --set data.path=..."
    return what_it_is(path)


def _plain(value: Any) -> str:
    return shown(list(value) if isinstance(value, tuple) else value)
