"""Names of classes: read from the recipe or from files, and the data's matched with the model's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import DataError, ProjectError, RecipeError
from export.records import MAX_DIGITS, parse_json, read_bounded
from export.words import listed
from pipeline.artifacts.files import escape_undecodable
from pipeline.data.sample import DataMissingError
from pipeline.recipe.schema import IMAGENET, Data

if TYPE_CHECKING:
    from pipeline.data.dataset import ImageSet


def model_names(classes: tuple[str, ...] | str | None) -> tuple[str, ...] | None:
    """Return the names that ``model.classes`` sets.

    Args:
        classes: the names, or the path of a file that `read_names` reads; None: not set.

    Raises:
        RecipeError: the file is missing or has another form, a name is repeated, or there is only one.
    """
    if classes is None:
        return None
    names = (
        read_names(Path(classes), "model.classes", RecipeError)
        if isinstance(classes, str)
        else _each_once(tuple(map(escape_undecodable, classes)), "model.classes", RecipeError)
    )
    if len(names) < 2:
        raise RecipeError(f"model.classes: expected at least two names. Received: {list(names)}.")
    return names


def data_names(config: Data, folder: Path) -> tuple[str, ...] | None:
    """Return the names that ``data.classes`` sets, in the order of the labels; None where labels are names themselves.

    For a table, ``classes.json`` or ``classes.txt`` beside it is read by default.

    Args:
        config: the recipe's section.
        folder: of the data.

    Raises:
        DataMissingError: the file does not exist.
        DataError: it has another form, or a name is repeated.
    """
    path = _names_file(config, folder)
    return None if path is None else read_names(path, "data.classes", DataError)


def read_names(path: Path, key: str, refusal: type[ProjectError]) -> tuple[str, ...]:
    """Read names of classes, in the order of the outputs.

    A text file has one name on each line. A JSON file has a list of names, or of lists that end in the name (as Keras
    lists the classes of ImageNet); or an object from index to name or list, or from name to index (``class_indices`` of
    Keras' generators). Where two classes have one name (ImageNet has two cranes), the ID at the start of the list is
    added to each.

    Args:
        path: JSON if it ends in ``.json``, else text.
        key: recipe key that error messages begin with.
        refusal: type of the error.

    Raises:
        ProjectError: as ``refusal``: the file cannot be read, has another form, or a name is repeated.
    """
    try:
        data = read_bounded(path)
        entries = (
            _entries_by_index(parse_json(data, path.name))
            if path.suffix.lower() == ".json"
            else [line.strip() for line in data.decode().splitlines() if line.strip()]
        )
    except (OSError, ValueError) as error:
        raise refusal(f"{key}: expected names, or a .txt or .json file. Received: {path}{_why(error)}") from error
    if not entries:
        raise refusal(f"{key}: expected a list of names in {path}. Received: {data[:60]!r}.")
    lists = [entry if isinstance(entry, list) and entry else [entry] for entry in entries]
    uses = Counter(str(entry[-1]) for entry in lists)
    names = (
        f"{entry[-1]} ({entry[0]})" if entry[1:] and uses[str(entry[-1])] > 1 else str(entry[-1]) for entry in lists
    )
    return _each_once(tuple(map(escape_undecodable, names)), key, refusal)


def in_model_order(images: ImageSet, names: tuple[str, ...] | None) -> ImageSet:
    """Return the images with labels that are indices of ``names``, the model's; classes are matched by name.

    Raises:
        DataError: the data has a class that is not among the names.
    """
    if names is None or names == images.classes:
        return images
    positions = {name: position for position, name in enumerate(names)}
    if unknown := [name for name in images.classes if name not in positions]:
        raise DataError(
            "Expected the data's classes among the model's (model.classes). "
            f"Received: data {listed(images.classes, most=8)}; model {listed(names, most=8)}; "
            f"{listed(unknown, most=8)} {'is' if len(unknown) == 1 else 'are'} not among the model's. "
            "Rename the folders or the names."
        )
    splits = {
        split: tuple(dataclasses.replace(sample, label=positions[images.classes[sample.label]]) for sample in samples)
        for split, samples in images.splits.items()
    }
    return dataclasses.replace(images, classes=names, splits=splits)


def _names_file(config: Data, folder: Path) -> Path | None:
    if config.classes == IMAGENET:
        from pipeline.data.download import IMAGENET_CLASSES, fetch

        return fetch(IMAGENET_CLASSES, "--set data.classes=/path/to/classes.json")
    if config.classes is not None:
        path = Path(config.classes)
        if not path.is_file():
            raise DataMissingError(f"data.classes: expected a file. Received: {path}, which does not exist.")
        return path
    beside = (folder / "classes.json", folder / "classes.txt")
    return next((path for path in beside if config.source == "csv" and path.is_file()), None)


def _entries_by_index(tree: Any) -> list[Any]:
    """The entries of a JSON file by their index; empty where it has another form."""
    if isinstance(tree, dict) and all(isinstance(index, int) for index in tree.values()):
        return sorted(tree, key=lambda name: tree[name])
    if isinstance(tree, dict) and all(index.isdecimal() and len(index) <= MAX_DIGITS for index in tree):
        return [tree[index] for index in sorted(tree, key=int)]
    return tree if isinstance(tree, list) else []


def _why(error: OSError | ValueError) -> str:
    reasons: dict[type[Exception], str] = {
        FileNotFoundError: ", which does not exist.",
        UnicodeDecodeError: ", which is no UTF-8 text. Save it as UTF-8.",
    }
    return reasons.get(type(error), f": {getattr(error, 'strerror', None) or error}.")


def _each_once(names: tuple[str, ...], key: str, refusal: type[ProjectError]) -> tuple[str, ...]:
    if repeated := sorted(name for name, number in Counter(names).items() if number > 1):
        raise refusal(f"{key}: expected each name once. Received: {listed(repeated)} more than once.")
    return names
