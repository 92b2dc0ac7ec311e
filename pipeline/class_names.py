"""The names of classes: of a model's outputs, in their order, and of the data, which are matched with them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from export.bounded_json import MOST_DIGITS, parse_json, read_bounded
from export.errors import ProjectError
from pipeline.errors import DataError, RecipeError
from pipeline.files import as_text
from pipeline.recipe import IMAGENET, Data
from pipeline.samples import DataMissingError
from pipeline.words import listed

if TYPE_CHECKING:
    from pipeline.data import ImageSet


def class_names(given: tuple[str, ...] | str | None) -> tuple[str, ...] | None:
    """The names that ``model.classes`` says: a list, or a file.

    Raises:
        RecipeError: the file is missing or of another form, or a name is there twice.
    """
    if given is None:
        return None
    if isinstance(given, str):
        given = tuple(name for _, name in _read(Path(given), "model.classes", RecipeError))
    names = tuple(map(as_text, given))
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise RecipeError(f"model.classes: expected each name once. Received: {listed(twice)} more than once.")
    if len(names) < 2:
        raise RecipeError(f"model.classes: expected at least two names. Received: {list(names)}.")
    return names


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


def data_class_names(config: Data, folder: Path) -> list[str] | None:
    """The names that ``data.classes`` gives, in the order of the outputs; None where labels are names themselves.

    The forms of the file are those of ``model.classes``. ``classes.json`` or ``classes.txt`` beside the data is taken
    too. Of two classes with one name (ImageNet has two cranes) the id keeps them apart.

    Raises:
        DataMissingError: the file does not exist.
        DataError: it holds something else, or one name twice.
    """
    path = _classes_file(config, folder)
    if path is None:
        return None
    entries = _read(path, "data.classes", DataError)
    names = Counter(name for _, name in entries)
    unique = [f"{name} ({key})" if key and names[name] > 1 else name for key, name in entries]
    if twice := sorted(name for name, count in Counter(unique).items() if count > 1):
        raise DataError(f"data.classes: expected each name once. Received: {listed(twice)} twice in {path}.")
    return unique


def _classes_file(config: Data, folder: Path) -> Path | None:
    if config.classes == IMAGENET:
        from pipeline.download import IMAGENET_CLASSES, DownloadError, fetch

        try:
            return fetch(IMAGENET_CLASSES, "--set data.classes=/path/to/classes.json")
        except DownloadError as error:
            raise DataMissingError(str(error)) from error
    if config.classes is not None:
        path = Path(config.classes)
        if not path.is_file():
            raise DataMissingError(f"data.classes: expected a file. Received: {path}, which does not exist.")
        return path
    beside = (folder / "classes.json", folder / "classes.txt")
    return next((path for path in beside if config.source == "csv" and path.is_file()), None)


def _read(path: Path, key: str, refusal: type[ProjectError]) -> list[tuple[str, str]]:
    """The classes in a file, in their order: the id of each ("" where it has none) and its name.

    A text file has a name a line. JSON is a list of names, a list of lists that begin with an id and end in the name
    (as Keras lists the classes of ImageNet), or an object of index to either or of name to index (``class_indices``
    of Keras' generators).

    Args:
        path: the file.
        key: of the recipe, for the message.
        refusal: what is raised where the file is missing or of another form.
    """
    expected = f"{key}: expected names, or a .txt or .json file. Received: {path}"
    try:
        data = read_bounded(path)
        if path.suffix.lower() != ".json":
            tree = [line.strip() for line in data.decode().splitlines() if line.strip()]
        else:
            tree = parse_json(data, path.name)
    except FileNotFoundError as error:
        raise refusal(f"{expected}, which does not exist.") from error
    except UnicodeDecodeError as error:
        raise refusal(f"{expected}, which is no UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        raise refusal(f"{expected}: {error.strerror or error}.") from error
    except ValueError as error:
        raise refusal(f"{expected}: {error}.") from error
    if isinstance(tree, dict) and all(isinstance(v, int) for v in tree.values()):
        tree = sorted(tree, key=lambda name: tree[name])
    elif isinstance(tree, dict) and all(k.isdecimal() and len(k) <= MOST_DIGITS for k in tree):
        tree = [tree[k] for k in sorted(tree, key=int)]
    if not tree or not isinstance(tree, list):
        raise refusal(f"{key}: expected a list of names in {path}. Received: {data[:60]!r}.")
    parts = [[str(part) for part in item] if isinstance(item, list) and item else [str(item)] for item in tree]
    return [("" if len(item) < 2 else item[0], item[-1]) for item in parts]


def _some(names: tuple[str, ...] | list[str]) -> str:
    return listed(names, most=8)
