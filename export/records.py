"""JSON that travels: parsed within bounds, and frozen dataclasses that it is read into and written from.

Parses JSON that somebody else wrote: never deeper, longer or larger than the files of this project are.

Standard library only, Python 3.10 syntax.

Records that travel as JSON: frozen dataclasses, written in one way and read strictly.

A record's fields and their types are its file format. What a file holds is compared with them before anything uses it,
so that a damaged file is one error that names the file and the key, not a KeyError three modules away.
Standard library only, Python 3.10 syntax.
"""

import dataclasses
import json
import math
import os
import types
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from export.errors import ProjectError
from export.words import count

MOST_BYTES = 8 * 2**20  # the largest honest file, the architecture of a network of a thousand layers, takes 1 MB
MOST_VALUES = 2**18  # an empty list takes 3 bytes in the file and 64 in memory: so 16 MiB at most, beside the text
DEEPEST = 200  # a model nested in a model adds five
MOST_DIGITS = 40  # of a whole number; beyond some thousands Python refuses or takes quadratic time


def parse_json(
    text: str | bytes,
    where: str,
    *,
    finite: bool = True,
    most: int = MOST_BYTES,
    most_values: int = MOST_VALUES,
) -> Any:
    """Parse JSON within bounds of size, depth and number of values.

    Lone surrogates in strings stay as they are. Of a key that is given twice the last counts.

    Args:
        text: the JSON; bytes are UTF-8.
        where: the file, which every message begins with.
        finite: refuse NaN and infinities, which JSON does not have and Python writes nevertheless.
        most: bytes.
        most_values: values; of lists and objects never more lists and objects than `MOST_VALUES`.

    Raises:
        ValueError: not JSON, or out of bounds; the message says which.
    """
    if len(text) > most:
        raise ValueError(f"{where}: {count(len(text), 'byte')}, where at most {most:,} are read")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 at byte {error.start:,}") from error
    groups = text.count("[") + text.count("{")
    values = text.count(",") + groups + 1
    if values > most_values or groups > MOST_VALUES:
        raise ValueError(f"{where}: about {count(values, 'value')}, where at most {most_values:,} are read")
    try:
        value = json.loads(
            text,
            parse_int=_whole,
            parse_float=_finite if finite else float,
            parse_constant=_refuse_constant if finite else None,
        )
    except RecursionError:
        raise ValueError(f"{where}: nested more than {DEEPEST} deep") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if _deeper_than(value, DEEPEST):
        raise ValueError(f"{where}: nested more than {DEEPEST} deep")
    return value


def read_json_file(path: str | os.PathLike[str]) -> Any:
    """Parse a file of JSON; of a larger one than is accepted, not more is read than tells so.

    Raises:
        OSError: it cannot be read.
        ValueError: see ``parse_json``.
    """
    return parse_json(read_bounded(path), os.path.basename(path))


def read_bounded(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """The content of a file; of a larger one than is accepted, not more is read than tells so.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large.
    """
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{os.path.basename(path)}: more than the {most:,} bytes that are read")
    return data


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {count(len(digits), 'digit')}")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:MOST_DIGITS]}, which is none that a computer holds")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name}, which is no JSON")


def _deeper_than(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


T = TypeVar("T")
# The largest record is a benchmark with its raw samples: 10,000 at most of each row. A float takes 32 bytes in memory.
LARGEST_FILE, MOST_RECORD_VALUES = 16 * 2**20, 10**6
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


class _MismatchError(Exception):
    """The key, what it should have been, and what it was."""


def to_json(record: Any) -> dict[str, object]:
    """Return a dataclass as plain JSON types: fields in their order, or what its ``to_dict`` gives."""
    tree: dict[str, object] = _plain(record)
    return tree


def without_none(record: Any) -> dict[str, object]:
    """Return the fields of a dataclass that are not None, by their names; for a ``to_dict``.

    Those that may be None must have it as their default, or the record is not read again.
    """
    return {one.name: said for one in dataclasses.fields(record) if (said := getattr(record, one.name)) is not None}


def from_json(kind: type[T], tree: Any, where: str, *, remedy: str, what: str = "record") -> T:
    """Return the record that a JSON tree holds.

    Args:
        kind: the record's class. A field without a default must be there; an unknown key is refused. A field
            ``schema`` must have its default.
        tree: what the JSON holds.
        where: the file, for the message.
        remedy: the last sentence of the message: what to do.
        what: what the file is, for the message. Defaults to "record".

    Raises:
        ProjectError: a key is missing, unknown, or of another type; with the file and the key.
    """
    schema = _schema(kind)
    if schema is not None:
        received = tree.get("schema") if isinstance(tree, dict) else None
        if received != schema or isinstance(received, bool):
            found = f"schema {received!r:.80}" if isinstance(tree, dict) else _received(tree)
            if isinstance(tree, dict) and "schema" not in tree:
                found = "an object without the key 'schema'"
            raise ProjectError(f"Expected the {what} of schema {schema} in {where}. Received: {found}. {remedy}")
    try:
        return cast(T, _record(kind, tree, ""))
    except _MismatchError as mismatch:
        key, expected, received = mismatch.args
        wanted = f"'{key}' of type {expected}" if key else expected
        raise ProjectError(f"Expected {wanted} in {where}. Received: {received}. {remedy}") from None


def read_record(kind: type[T], path: Path, *, remedy: str, what: str = "record") -> T:
    """Read the record in a JSON file; the arguments are those of `from_json`.

    Raises:
        ProjectError: the file is missing, too large, not JSON, or not this record.
    """
    return from_json(kind, _read(path, remedy, what), str(path), remedy=remedy, what=what)


def read_records(kind: type[T], path: Path, *, remedy: str, what: str) -> tuple[T, ...]:
    """Read a JSON file that is a list of records; as `read_record`, which see."""
    rows = _read(path, remedy, what)
    if not isinstance(rows, list):
        raise ProjectError(f"Expected a list in {path}. Received: {_received(rows)}. {remedy}")
    return tuple(
        from_json(kind, row, f"{path}, entry {number}", remedy=remedy, what=what) for number, row in enumerate(rows)
    )


def _read(path: Path, remedy: str, what: str) -> Any:
    try:
        return parse_json(
            read_bounded(path, LARGEST_FILE), path.name, most=LARGEST_FILE, most_values=MOST_RECORD_VALUES
        )
    except OSError as problem:
        raise ProjectError(
            f"Expected the {what} {path}. Received: {problem.strerror or problem}. {remedy}"
        ) from problem
    except ValueError as problem:
        raise ProjectError(f"Expected JSON in {path}. Received: {problem}. {remedy}") from problem


@cache
def _fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type and whether it must be there, of each field of a dataclass."""
    hints = get_type_hints(kind)
    return tuple(
        (one.name, hints[one.name], one.default is one.default_factory is dataclasses.MISSING)
        for one in dataclasses.fields(kind)
        if one.init
    )


def _schema(kind: Any) -> int | None:
    defaults = (one.default for one in dataclasses.fields(kind) if one.name == "schema")
    return next((default for default in defaults if isinstance(default, int)), None)


def _record(kind: Any, tree: Any, key: str) -> Any:
    fields = _fields(kind)
    known = {name for name, _, _ in fields}
    if unknown := [name for name in _object(tree, key) if name not in known]:
        listed = f"{unknown[0]!r:.80}" + (f" and {len(unknown) - 1} more" if unknown[1:] else "")
        keys = f"keys of {', '.join(sorted(known))}"
        raise _MismatchError("", keys + (f" as '{key}'" if key else ""), f"the unknown key {listed}")
    given = {}
    for name, wanted, required in fields:
        inner = f"{key}.{name}" if key else name
        if name in tree:
            given[name] = _value(wanted, tree[name], inner)
        elif required:
            raise _MismatchError(inner, _describe(wanted), "nothing")
    return _consistent(kind, partial(kind, **given), key)


def _value(wanted: Any, value: Any, key: str) -> Any:
    """Return the value as the type, or say at which key it is none."""
    if wanted in (Any, object):
        return value
    if _own_form(wanted):
        return _consistent(wanted, partial(wanted.from_dict, _object(value, key)), key)
    if dataclasses.is_dataclass(wanted):
        return _record(wanted, value, key)
    if wanted in _NAMES:
        return _plain_value(wanted, value, key)
    origin, args = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return _union(args, value, key)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        raise _MismatchError(key, _describe(wanted), f"{value!r:.80}")
    if origin is tuple:
        return _tuple(args, value, key)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        # Names may be those of files, which need not be text.
        return {name: _value(args[1], item, f"{key}.{name:.40}") for name, item in _object(value, key).items()}
    raise TypeError(f"Expected a type that JSON has. Received: {wanted!r} at {key}.")


def _own_form(kind: Any) -> bool:
    """Whether a class has a JSON form of its own: what ``to_dict`` gives and ``from_dict`` takes."""
    return isinstance(kind, type) and hasattr(kind, "from_dict")


def _consistent(kind: type[T], make: Callable[[], T], key: str) -> T:
    """Return what a class makes of its values, or say in its own words why they do not go together."""
    try:
        return make()
    except Exception as error:
        raise _MismatchError(
            "", f"a consistent {kind.__name__}" + (f" as '{key}'" if key else ""), str(error)
        ) from error


def _object(value: Any, key: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _mismatch(key, "an object", value)
    return value


def _plain_value(wanted: Any, value: Any, key: str) -> Any:
    fits = isinstance(value, (int, float) if wanted is float else wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise _mismatch(key, _NAMES[wanted], value)
    if wanted is float:
        try:
            value = float(value)
        except OverflowError:
            raise _mismatch(key, "a number", value) from None
        if not math.isfinite(value):
            raise _mismatch(key, "a finite number", value)
    if wanted is str and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _mismatch(key, "text that can be written as UTF-8", value)
    return value


def _tuple(args: tuple[Any, ...], value: Any, key: str) -> Any:
    if not isinstance(value, list):
        raise _mismatch(key, "a list", value)
    kinds = [args[0]] * len(value) if args[1:] == (Ellipsis,) else list(args)
    if len(kinds) != len(value):
        raise _MismatchError(key, f"a list of {len(kinds)}", f"{count(len(value), 'entry', 'entries')}")
    return tuple(_value(kind, item, f"{key}[{index}]") for index, (kind, item) in enumerate(zip(kinds, value)))


def _union(args: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in args:
        return None
    choices = [one for one in args if one is not type(None)]
    if len(choices) == 1:
        return _value(choices[0], value, key)
    for one in choices:
        try:
            return _value(one, value, key)
        except _MismatchError:
            continue
    raise _mismatch(key, _alternatives(args), value)


def _describe(wanted: Any) -> str:
    if wanted in _NAMES:
        return _NAMES[wanted]
    origin, args = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return " or ".join(repr(one) for one in args)
    if origin in (Union, types.UnionType):
        return _alternatives(args)
    return "a list" if origin is tuple else "an object"


def _alternatives(args: tuple[Any, ...]) -> str:
    return " or ".join(dict.fromkeys(_describe(one) for one in args))


def _mismatch(key: str, expected: str, value: Any) -> _MismatchError:
    return _MismatchError(key, expected, _received(value))


def _received(value: Any) -> str:
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else ascii(value)[:80]


def _plain(value: Any) -> Any:
    if hasattr(type(value), "to_dict"):
        return {name: _plain(item) for name, item in value.to_dict().items()}
    if dataclasses.is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
