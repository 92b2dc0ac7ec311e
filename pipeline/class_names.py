"""The names of a model's outputs, in their order, matched with the classes of the data."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

from export.bounded_json import MOST_DIGITS, parse_json, read_bounded
from pipeline.data import ImageSet
from pipeline.errors import DataError, RecipeError
from pipeline.files import as_text
from pipeline.words import listed

_EXPECTED = "model.classes: expected names, or a .txt or .json file."


def class_names(given: tuple[str, ...] | str | None) -> tuple[str, ...] | None:
    """The names that ``model.classes`` says: a list, or a file.

    A text file has a name a line. JSON is a list of names, a list of lists that end in the name (as Keras lists the
    classes of ImageNet), or an object of index to name or of name to index (``class_indices`` of Keras' generators).

    Raises:
        RecipeError: the file is missing or of another form, or a name is there twice.
    """
    if given is None:
        return None
    names = tuple(map(as_text, _read(Path(given)) if isinstance(given, str) else given))
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise RecipeError(f"model.classes: expected each name once. Received: {listed(twice)} more than once.")
    if len(names) < 2:
        raise RecipeError(f"model.classes: expected at least two names. Received: {list(names)}.")
    return tuple(names)


def in_model_order(images: ImageSet, names: tuple[str, ...] | None) -> ImageSet:
    """The images with their labels in the order of ``names``, which the data's own classes are matched to by name.

    Raises:
        DataError: the data has a class that is not among the names.
    """
    if names is None or names == images.classes:
        return images
    positions = {name: position for position, name in enumerate(names)}
    if unknown := [name for name in images.classes if name not in positions]:
        raise DataError(
            "Expected the data's classes among the model's (model.classes). "
            f"Received: data {_some(images.classes)}; model {_some(names)}; {_some(unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} not among the model's. Rename the folders or the names."
        )
    label = {old: positions[name] for old, name in enumerate(images.classes)}
    splits = {
        split: tuple(dataclasses.replace(sample, label=label[sample.label]) for sample in samples)
        for split, samples in images.splits.items()
    }
    return dataclasses.replace(images, classes=names, splits=splits)


def _read(path: Path) -> tuple[str, ...]:
    try:
        data = read_bounded(path)
        if path.suffix.lower() != ".json":
            return tuple(line.strip() for line in data.decode().splitlines() if line.strip())
        tree = parse_json(data, path.name)
    except FileNotFoundError as error:
        raise RecipeError(f"{_EXPECTED} Received: {path}, which does not exist.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{_EXPECTED} Received: {path}, which is no UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        raise RecipeError(f"{_EXPECTED} Received: {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise RecipeError(f"{_EXPECTED} Received: {path}: {error}.") from error
    names: list[str] = []
    if isinstance(tree, dict) and all(isinstance(v, int) for v in tree.values()):
        names = sorted(tree, key=lambda name: tree[name])
    elif isinstance(tree, dict) and all(k.isdecimal() and len(k) <= MOST_DIGITS for k in tree):
        tree = [tree[k] for k in sorted(tree, key=int)]
    if isinstance(tree, list):
        names = [str(item[-1]) if isinstance(item, list) and item else str(item) for item in tree]
    if not names:
        raise RecipeError(f"model.classes: expected a list of names in {path}. Received: {data[:60]!r}.")
    return tuple(names)


def _some(names: tuple[str, ...] | list[str]) -> str:
    return listed(names, most=8)
