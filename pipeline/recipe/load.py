"""Reads a recipe: YAML into typed dataclasses, unknown keys refused with the closest match, ``--set a.b=c`` on top."""

import dataclasses
import functools
import math
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from export.errors import RecipeError
from export.words import count
from pipeline.recipe.limits import RECIPE_NAME, Limit
from pipeline.recipe.messages import (
    MOST_BYTES,
    TYPES,
    file_name,
    means_nothing,
    missing_space,
    no_choice,
    no_list,
    nothing_is_null,
    other_split,
    parse_yaml,
    shown,
    wrong_type,
)
from pipeline.recipe.rules import check_rules
from pipeline.recipe.schema import IMAGENET, Recipe
from pipeline.terminal.command_line import closest, meant

# Keys that hold a path. In a file they are relative to it, in --set to the working directory; what lies there enters
# a stage's inputs by content, so the path itself decides nothing.
PATH_KEYS = (
    "data.path",
    "data.classes",
    "model.path",
    "model.weights",
    "model.classes",
    "model.preprocessing.mean",
    "build.timing_cache",  # it spares time and decides nothing
)
HINTS = {  # for keys that many give in another form
    "data.path": "It is one folder or file.",
    "data.classes": "Folders of images name the classes; the order of a model's outputs is a list in model.classes.",
    "data.splits": "It is written as {train: 0.6, validation: 0.1, calibration: 0.1, test: 0.2}.",
    "model.input_size": "Pictures come to the model square, so it is one number of pixels.",
}
# What may run is not what comes out: a permission decides no result. Only where a refused engine is one is it declared,
# among the facts of the machine (`pipeline.workflow.environment`).
PERMISSION_KEYS = ("model.allow", "runtime.host_code")
LONGEST_KEY = 200  # characters of a dotted key
LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes that file systems take
SECTIONS = tuple(field.name for field in dataclasses.fields(Recipe) if field.default_factory is not dataclasses.MISSING)
_hints = functools.cache(get_type_hints)  # evaluated once a section
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # YAML 1.1 reads 1e-3 as text


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        path: YAML file.
        overrides: ``section.key=value`` strings; the value is YAML, so ``[1, 8]``, ``null`` and ``true`` work.

    Raises:
        RecipeError: no such file, not YAML, an unknown key, a value of the wrong type or out of range.
        ModelError: a backbone with settings that do not go with it.
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
        hint = HINTS.get(str(error).partition(":")[0], "")
        raise RecipeError(f"{error} {hint}".rstrip()) from error
    check_rules(recipe)
    return recipe


def to_dict(section: Any) -> dict[str, object]:
    """A recipe or a section of it as plain values (tuples become lists)."""
    return {name: _plain(value) for name, value in dataclasses.asdict(section).items()}


def dump_yaml(recipe: Recipe) -> str:
    """The recipe in force as YAML, defaults filled in. It loads again to an equal recipe."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)


def recipe_slice(recipe: Recipe, names: Iterable[str]) -> dict[str, object]:
    """The part that decides a stage's result, without permissions and paths (whose content is hashed instead).

    Args:
        recipe: all of it.
        names: sections and dotted keys; of those that there are none of, the part has none.
    """
    whole = to_dict(recipe)
    for dotted in (*PERMISSION_KEYS, *PATH_KEYS):
        section, key = section_of(whole, dotted)
        if dotted in PERMISSION_KEYS or not isinstance(section.get(key), list):  # names and numbers there do decide
            section.pop(key, None)
    places = {name: section_of(whole, name) for name in names}
    return {name: section[key] for name, (section, key) in places.items() if key in section}


def section_of(tree: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    """The section that holds a dotted key (an empty one where there is none), and the key in it."""
    *sections, key = dotted.split(".")
    node: Any = tree
    for name in sections:
        node = node.get(name) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else {}), key


def read_yaml(path: Path) -> dict[str, object]:
    """The sections of a recipe's file, as they are written.

    Raises:
        RecipeError: no such file, not YAML, or no sections.
    """
    if not path.is_file():
        raise RecipeError(f"Expected a recipe file. Received: {path}, which does not exist.")
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        tree = parse_yaml(data.decode())
    except UnicodeDecodeError as error:
        what = "UTF-16 text" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "no UTF-8 text"
        raise RecipeError(f"Expected YAML in {path}. Received: {what}. Save it as UTF-8.") from error
    except ValueError as error:
        raise RecipeError(f"Expected YAML in {path}. Received: {error}.") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"Expected sections such as 'data:' and 'model:' in {path}. Received: {shown(tree)}.")
    return tree


def override_tree(override: str) -> dict[str, object]:
    """What ``section.key=value`` says, as sections.

    Raises:
        RecipeError: no key, no equals sign, or no YAML behind it.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip() or len(key) > LONGEST_KEY:
        raise RecipeError(f"Expected --set section.key=value. Received: --set {shown(override)}.")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"--set {key}: expected a YAML value. Received: {shown(text)} ({error}).") from error
    *sections, last = key.strip().split(".")
    tree: dict[str, object] = {last: value}
    for name in reversed(sections):
        tree = {name: tree}
    return tree


def _merge(tree: dict[str, Any], branch: Mapping[str, Any]) -> None:
    for key, value in branch.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _resolve_paths(tree: dict[str, Any], base: Path) -> None:
    for dotted in PATH_KEYS:
        section, key = section_of(tree, dotted)
        value = section.get(key)
        if not isinstance(value, str) or value == IMAGENET or (means_nothing(value) and not (base / value).exists()):
            continue
        section[key] = resolved(value, base, dotted)


def resolved(value: str, base: Path, where: str) -> str:
    """A path that was written in a recipe or an override, in full.

    Args:
        value: as it was written.
        base: the folder that it is relative to.
        where: its key, for the message.

    Raises:
        RecipeError: no path that a file system takes.
    """
    if not value.strip():
        raise RecipeError(f"{where}: expected a path. Received: {shown(value)}, which is empty. Leave the line out.")
    try:
        path = (base / Path(value).expanduser()).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~nobody, a ring of links
        raise RecipeError(f"{where}: expected a path. Received: {shown(value)}: {error}.") from error
    if len(os.fsencode(path)) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise RecipeError(
            f"{where}: expected a path. Received: one of {count(len(value), 'character')}: {shown(value)}."
        )
    return str(path)


def _convert(expected: Any, value: Any, where: str, default: Any = None) -> Any:
    """The value as the type of the field, within its limits, or a RecipeError that says where and what."""
    if dataclasses.is_dataclass(expected):
        return _convert_section(expected, value, where, default)
    origin, args = get_origin(expected), get_args(expected)
    if origin is Annotated:
        value = _convert(args[0], value, where, default)
        for limit in (note for note in args[1:] if isinstance(note, Limit) and value is not None):
            if not limit.holds(value):
                received = to_dict(value) if dataclasses.is_dataclass(value) else _plain(value)
                raise RecipeError(f"{where}: expected {limit.expected}. Received: {shown(received)}.")
        return value
    if origin in (Union, types.UnionType):
        if type(None) in args:
            if value is None:
                return None
            if means_nothing(value):
                raise nothing_is_null(where, value)
        return _convert_union([a for a in args if a is not type(None)], value, where, default)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        raise no_choice(where, args, value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise no_list(where, args[0], value)
        if args[0] is str:  # YAML reads the class name 0 as a number
            value = [str(item) if type(item) is int else item for item in value]
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping | None):
            raise RecipeError(f"{where}: expected names, each with keys and values. Received: {shown(value)}.")
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
        raise RecipeError(f"{where}: expected a finite number. Received: {shown(value)}.")
    return float(value) if expected is float else value


def _convert_union(choices: Sequence[Any], value: Any, where: str, default: Any) -> Any:
    """The value as the one of several types that its form stands for."""
    if len(choices) == 1:
        return _convert(choices[0], value, where)
    sections: list[Any] = [c for c in choices if dataclasses.is_dataclass(c)]
    lists = [c for c in choices if get_origin(c) is tuple]
    plain = [c for c in choices if c not in sections and c not in lists]
    if isinstance(value, dict) and sections:
        start = default if isinstance(default, sections[0]) else sections[0]()
        return _convert_section(sections[0], value, where, start)
    if isinstance(value, (list, tuple)) and lists:
        return _convert(lists[0], value, where)
    if isinstance(value, (list, tuple, dict)):
        raise RecipeError(f"{where}: expected a plain value{' or a list' if lists else ''}. Received: {shown(value)}.")
    if plain == [str] and lists and not isinstance(value, str):
        raise no_list(where, get_args(lists[0])[0], value)
    words = [c for c in plain if get_origin(c) is Literal]
    numbers = [c for c in plain if c not in words]
    if words and numbers and isinstance(value, str) and not _NUMBER.fullmatch(value):
        if value in get_args(words[0]):
            return value
        raise no_choice(where, get_args(words[0]), value, TYPES[numbers[0]])
    return _convert((numbers or words)[0], value, where)


def _convert_section(section: Any, value: Any, where: str, default: Any) -> Any:
    """A section; keys that are not given keep what the section above says, not the type's own default."""
    hints, fields = _hints(section, include_extras=True), _hints(section)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        slip = missing_space(where, value, fields)
        raise slip or RecipeError(f"{where or 'recipe'}: expected keys and values. Received: {shown(value)}.")
    for key in value:
        if key not in fields:
            if slip := missing_space(where, key, fields):
                raise slip
            dotted = f"{where}.{key}" if where else str(key)
            near = meant(key, fields, 0.7) or _elsewhere(where, key, 0.8) or meant(key, fields)
            hint = other_split(key, fields) or _elsewhere(where, key, 1.0) or near
            raise RecipeError(f"Unknown key {shown(dotted)}.{hint} Known here: {', '.join(fields)}.")
        if value[key] is None and get_origin(fields[key]) is Literal:
            raise RecipeError(f"{where}.{key}: expected a value. Received: nothing (null). Leave the line out.")
    prefix = f"{where}." if where else ""
    given = {key: _convert(hints[key], item, f"{prefix}{key}", getattr(default, key)) for key, item in value.items()}
    return dataclasses.replace(default, **given)


def _elsewhere(section: str, key: Any, cutoff: float) -> str:
    """Keys as close to this name as that which stand in other sections; those below this one go first."""
    every = list(_keys(Recipe, ""))
    name = closest(key, {one.rpartition(".")[2] for one in every}, cutoff)
    found = [one for one in every if name is not None and one.rpartition(".")[2] == name]
    below = [one for one in found if one.startswith(f"{section}.")]
    return f" Did you mean {' or '.join((below or found)[:4])}?" if found else ""


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
