"""Load recipes: YAML into typed dataclasses, with ``--set a.b=c`` overrides; unknown keys raise the closest match."""

import dataclasses
import functools
import math
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from export.errors import RecipeError
from export.words import count
from pipeline.recipe.limits import RECIPE_NAME, Limit
from pipeline.recipe.messages import (
    MOST_BYTES,
    TYPES,
    choice_error,
    file_name,
    format_value,
    is_null_word,
    list_error,
    missing_space,
    other_split,
    parse_yaml,
    wrong_type,
)
from pipeline.recipe.rules import check_rules
from pipeline.recipe.schema import IMAGENET, Recipe
from pipeline.terminal.command_line import closest, suggest_closest

# Keys that hold a path, relative to the recipe's file or, in --set, to the working directory. What a path names enters
# a stage's inputs by content, so the path itself decides nothing.
PATH_KEYS = (
    "data.path",
    "data.classes",
    "model.path",
    "model.weights",
    "model.classes",
    "model.preprocessing.mean",
    "build.timing_cache",  # saves time and decides nothing
)
HINTS = {  # for keys that are often given in another form
    "data.path": "It is one folder or file.",
    "data.classes": "Folders of images name the classes; the order of a model's outputs is a list in model.classes.",
    "data.splits": "It is written as {train: 0.6, validation: 0.1, calibration: 0.1, test: 0.2}.",
    "model.input_size": "The model's input is square, so it is one number of pixels.",
}
# A permission decides what may run, not a result. Stages whose result depends on a refused engine declare it among the
# facts about the machine (`pipeline.workflow.environment`).
PERMISSION_KEYS = ("model.allow", "runtime.host_code")
LONGEST_KEY = 200  # characters of a dotted key
LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, limits of common file systems
SECTIONS = tuple(field.name for field in dataclasses.fields(Recipe) if field.default_factory is not dataclasses.MISSING)
_hints = functools.cache(get_type_hints)  # evaluated once per section
Section = TypeVar("Section")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # YAML 1.1 reads 1e-3 as text


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe's file and apply overrides.

    Args:
        path: YAML file.
        overrides: ``section.key=value`` strings; the value is YAML, such as ``[1, 8]``, ``null`` or ``true``.

    Raises:
        RecipeError: No such file, not YAML, an unknown key, or a value of a wrong type or out of range.
        ModelError: Settings that the backbone does not support.
    """
    tree = read_yaml(path)
    _resolve_paths(tree, path.resolve().parent)
    for override in overrides:
        branch = override_tree(override)
        _resolve_paths(branch, Path.cwd())
        _merge(tree, branch)
    if "name" not in tree and not RECIPE_NAME.fullmatch(path.stem):
        raise file_name(path)
    tree.setdefault("name", path.stem)
    try:
        recipe: Recipe = _convert(Recipe, tree, "", Recipe(name=path.stem))
    except RecipeError as error:
        raise RecipeError(f"{error} {HINTS.get(str(error).partition(':')[0], '')}".rstrip()) from error
    check_rules(recipe)
    return recipe


def to_dict(section: Any) -> dict[str, object]:
    """Return a recipe or a section as plain values; tuples become lists."""
    return {name: _plain(value) for name, value in dataclasses.asdict(section).items()}


def dump_yaml(recipe: Recipe) -> str:
    """Return a recipe as YAML including defaults; loading it gives an equal recipe."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)


def read_section(values: Mapping[str, object], default: Section, where: str) -> Section:
    """Return a section of a recipe from keys and values, with every limit checked.

    Args:
        values: What is set; other keys keep their values of ``default``.
        default: The section without them.
        where: Name of the section, for messages.

    Raises:
        RecipeError: An unknown key, or a value that is not allowed.
    """
    section: Section = _convert_section(type(default), dict(values), where, default)
    return section


def recipe_slice(recipe: Recipe, names: Iterable[str]) -> dict[str, object]:
    """Return the part that decides a stage's result, without permissions and paths, whose content is hashed instead.

    Args:
        recipe: The whole recipe.
        names: Sections and dotted keys; unknown ones are left out.
    """
    whole = to_dict(recipe)
    for dotted in (*PERMISSION_KEYS, *PATH_KEYS):
        section, key = find_section(whole, dotted)
        if dotted in PERMISSION_KEYS or not isinstance(section.get(key), list):  # a list is names or numbers, no path
            section.pop(key, None)
    places = {name: find_section(whole, name) for name in names}
    return {name: section[key] for name, (section, key) in places.items() if key in section}


def find_section(tree: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    """Return the section that holds a dotted key (empty if there is none), and the key in it."""
    *sections, key = dotted.split(".")
    node: Any = tree
    for name in sections:
        node = node.get(name) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else {}), key


def read_yaml(path: Path) -> dict[str, object]:
    """Read the sections of a recipe's file as they are written.

    Raises:
        RecipeError: No such file, not YAML, or no sections.
    """
    if not path.is_file():
        raise RecipeError(f"Expected a recipe file. Received: {path}, which does not exist.")
    try:
        with path.open("rb") as file:
            tree = parse_yaml(file.read(MOST_BYTES + 1).decode())
    except UnicodeDecodeError as error:
        what = "UTF-16 text" if error.object.startswith((b"\xff\xfe", b"\xfe\xff")) else "no UTF-8 text"
        raise RecipeError(f"Expected YAML in {path}. Received: {what}. Save it as UTF-8.") from error
    except ValueError as error:
        raise RecipeError(f"Expected YAML in {path}. Received: {error}.") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"Expected sections such as 'data:' and 'model:' in {path}. Received: {format_value(tree)}.")
    return tree


def override_tree(override: str) -> dict[str, object]:
    """Parse ``section.key=value`` into nested sections.

    Raises:
        RecipeError: No key, no equals sign, or a value that is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip() or len(key) > LONGEST_KEY:
        raise RecipeError(f"Expected --set section.key=value. Received: --set {format_value(override)}.")
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"--set {key}: expected a YAML value. Received: {format_value(text)} ({error}).") from error
    for name in reversed(key.strip().split(".")):
        tree = {name: tree}
    return cast(dict[str, object], tree)


def _merge(tree: dict[str, Any], branch: Mapping[str, Any]) -> None:
    for key, value in branch.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _resolve_paths(tree: dict[str, Any], base: Path) -> None:
    for dotted in PATH_KEYS:
        section, key = find_section(tree, dotted)
        value = section.get(key)
        if isinstance(value, str) and value != IMAGENET and (not is_null_word(value) or (base / value).exists()):
            section[key] = resolve_path(value, base, dotted)


def resolve_path(value: str, base: Path, where: str) -> str:
    """Return the absolute path of a path in a recipe or an override.

    Args:
        value: Path as it is written.
        base: Folder that it is relative to.
        where: Its dotted key, for the message.

    Raises:
        RecipeError: Not a path that a file system accepts.
    """
    if not value.strip():
        raise RecipeError(
            f"{where}: expected a path. Received: {format_value(value)}, which is empty. Leave the line out."
        )
    try:
        path = (base / Path(value).expanduser()).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~nobody, a ring of links
        raise RecipeError(f"{where}: expected a path. Received: {format_value(value)}: {error}.") from error
    if len(os.fsencode(path)) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise RecipeError(
            f"{where}: expected a path. Received: one of {count(len(value), 'character')}: {format_value(value)}."
        )
    return str(path)


def _convert(expected: Any, value: Any, where: str, default: Any = None) -> Any:
    """Convert a value to a field's type and check its limits, or raise a RecipeError with the key and the value."""
    if dataclasses.is_dataclass(expected):
        return _convert_section(expected, value, where, default)
    origin, args = get_origin(expected), get_args(expected)
    if origin is Annotated:
        value = _convert(args[0], value, where, default)
        for limit in args[1:]:
            if isinstance(limit, Limit) and value is not None and not limit.holds(value):
                received = to_dict(value) if dataclasses.is_dataclass(value) else _plain(value)
                raise RecipeError(f"{where}: expected {limit.expected}. Received: {format_value(received)}.")
        return value
    if origin in (Union, types.UnionType):
        if type(None) in args and value is None:
            return None
        if type(None) in args and is_null_word(value):
            raise RecipeError(
                f"{where}: expected a value, or null for none. Received: the text {format_value(value)}. "
                "Write null, without quotes."
            )
        return _convert_union([kind for kind in args if kind is not type(None)], value, where, default)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        raise choice_error(where, args, value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise list_error(where, args[0], value)
        if args[0] is str:  # YAML reads the class name 0 as a number
            value = [str(item) if type(item) is int else item for item in value]
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping | None):
            raise RecipeError(f"{where}: expected names, each with keys and values. Received: {format_value(value)}.")
        return {
            _convert(args[0], str(name), where): _convert(args[1], item, f"{where}.{name}", args[1]())
            for name, item in (value or {}).items()
        }
    if expected is float and isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    accepted = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}[expected]
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
        raise wrong_type(where, expected, value)
    if expected is float and not math.isfinite(float(value)):
        raise RecipeError(f"{where}: expected a finite number. Received: {format_value(value)}.")
    return float(value) if expected is float else value


def _convert_union(choices: Sequence[Any], value: Any, where: str, default: Any) -> Any:
    """Convert a value to the one of several types that fits its form."""
    if len(choices) == 1:
        return _convert(choices[0], value, where)
    sections: list[Any] = [kind for kind in choices if dataclasses.is_dataclass(kind)]
    lists = [kind for kind in choices if get_origin(kind) is tuple]
    plain = [kind for kind in choices if kind not in sections and kind not in lists]
    if isinstance(value, dict) and sections:
        start = default if isinstance(default, sections[0]) else sections[0]()
        return _convert_section(sections[0], value, where, start)
    if isinstance(value, (list, tuple)) and lists:
        return _convert(lists[0], value, where)
    if isinstance(value, (list, tuple, dict)):
        raise RecipeError(
            f"{where}: expected a plain value{' or a list' if lists else ''}. Received: {format_value(value)}."
        )
    if plain == [str] and lists and not isinstance(value, str):
        raise list_error(where, get_args(lists[0])[0], value)
    words = [kind for kind in plain if get_origin(kind) is Literal]
    numbers = [kind for kind in plain if kind not in words]
    if words and value in get_args(words[0]):
        return value
    if words and numbers and isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise choice_error(where, get_args(words[0]), value, TYPES[numbers[0]])
    return _convert((numbers or words)[0], value, where)


def _convert_section(section: Any, value: Any, where: str, default: Any) -> Any:
    """Convert a section; keys that are not given keep the values of ``default``."""
    hints, fields = _hints(section, include_extras=True), _hints(section)
    value = {} if value is None else value
    if not isinstance(value, dict):
        message = f"{where or 'recipe'}: expected keys and values. Received: {format_value(value)}."
        raise missing_space(where, value, fields) or RecipeError(message)
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in fields:
            near = suggest_closest(key, fields, 0.7) or _elsewhere(where, key, 0.8) or suggest_closest(key, fields)
            hint = other_split(key, fields) or _elsewhere(where, key, 1.0) or near
            message = f"Unknown key {format_value(f'{prefix}{key}')}.{hint} Known here: {', '.join(fields)}."
            raise missing_space(where, key, fields) or RecipeError(message)
        if value[key] is None and get_origin(fields[key]) is Literal:
            raise RecipeError(f"{where}.{key}: expected a value. Received: nothing (null). Leave the line out.")
    converted = {
        key: _convert(hints[key], item, f"{prefix}{key}", getattr(default, key)) for key, item in value.items()
    }
    return dataclasses.replace(default, **converted)


def _elsewhere(section: str, key: Any, cutoff: float) -> str:
    """Suggest keys of other sections whose names are close to this one, preferably keys within this section."""
    every = [(dotted, dotted.rpartition(".")[2]) for dotted in _keys(Recipe, "")]
    name = closest(key, {last for _, last in every}, cutoff)
    matches = [dotted for dotted, last in every if last == name]
    inside = [dotted for dotted in matches if dotted.startswith(f"{section}.")]
    return f" Did you mean {' or '.join((inside or matches)[:4])}?" if matches else ""


def _keys(section: Any, prefix: str) -> Iterator[str]:
    for name, kind in _hints(section).items():
        if dataclasses.is_dataclass(kind):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
