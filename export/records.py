"""Records that travel as JSON: frozen dataclasses, written in one way, and read strictly within bounds of size.

A record's fields and their types are its file format. The content of a file is checked against them before it is used,
so a damaged file is one error that names the file and the key, not a KeyError three modules away. Standard library
only, Python 3.10 syntax.
"""

import contextlib
import dataclasses
import json
import math
import os
import types
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from export.errors import ProjectError
from export.words import count

MAX_BYTES = 8 * 2**20  # the largest valid file, the architecture of a network of a thousand layers, takes 1 MB
MAX_VALUES = 2**18  # an empty list takes 3 bytes in the file and 64 in memory: at most 16 MiB beside the text
MAX_DEPTH = 200  # a model nested in a model adds five levels
MAX_DIGITS = 40  # of an integer; above some thousands Python refuses it or needs quadratic time


def parse_json(
    text: str | bytes,
    where: str,
    *,
    finite: bool = True,
    most: int = MAX_BYTES,
    most_values: int = MAX_VALUES,
) -> Any:
    """Parse JSON within bounds of size, depth and number of values.

    Lone surrogates in strings are kept. The last of several equal keys counts.

    Args:
        text: The JSON; bytes are UTF-8.
        where: The name of the file, with which every message begins.
        finite: Whether NaN and infinities, which Python writes although JSON has none, are refused. Defaults to True.
        most: Largest number of bytes. Defaults to `MAX_BYTES`.
        most_values: Largest number of values; of lists and objects there are never more than `MAX_VALUES`. Defaults
            to `MAX_VALUES`.

    Raises:
        ValueError: The text is not JSON, or out of bounds; the message says which.
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
    if values > most_values or groups > MAX_VALUES:
        raise ValueError(f"{where}: about {count(values, 'value')}, where at most {most_values:,} are read")
    try:
        value = json.loads(
            text,
            parse_int=_whole,
            parse_float=_finite if finite else float,
            parse_constant=_refuse_constant if finite else None,
        )
    except RecursionError:
        raise ValueError(f"{where}: nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if _deeper_than(value, MAX_DEPTH):
        raise ValueError(f"{where}: nested more than {MAX_DEPTH} deep")
    return value


def read_json_file(path: str | os.PathLike[str]) -> Any:
    """Parse a JSON file within the bounds of `parse_json`.

    Raises:
        OSError: The file cannot be read.
        ValueError: See `parse_json`.
    """
    return parse_json(read_bounded(path), os.path.basename(path))


def read_bounded(path: str | os.PathLike[str], most: int = MAX_BYTES) -> bytes:
    """Return the content of a file; at most one byte above the limit is read.

    Args:
        path: The file.
        most: Largest number of bytes. Defaults to `MAX_BYTES`.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is too large.
    """
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{os.path.basename(path)}: more than the {most:,} bytes that are read")
    return data


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {count(len(digits), 'digit')}")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:MAX_DIGITS]}, which is none that a computer holds")
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
    return bool(level)


class Record(Protocol):
    """A dataclass that is a whole file."""

    @property
    def schema(self) -> int:
        """Version of the file format; a file of another than the field's default is refused."""


T = TypeVar("T")
R = TypeVar("R", bound=Record)
# The largest record is a benchmark with its raw samples, at most 10,000 per row. A float takes 32 bytes in memory.
MAX_RECORD_BYTES, MAX_RECORD_VALUES = 16 * 2**20, 10**6
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


class _MismatchError(Exception):
    """A value of another type than its field; its arguments are the key, the expected and the received value."""


def to_json(record: Any) -> dict[str, object]:
    """Return a dataclass as plain JSON types: its fields in order, or the result of its ``to_dict``."""
    return cast("dict[str, object]", _plain(record))


def without_none(record: Any) -> dict[str, object]:
    """Return the fields of a dataclass that are not None, by name; for a ``to_dict``.

    A field that may be None must have None as its default, or the record cannot be read again.
    """
    return {
        field.name: value for field in dataclasses.fields(record) if (value := getattr(record, field.name)) is not None
    }


def from_json(kind: type[T], tree: Any, where: str, *, remedy: str, what: str = "record") -> T:
    """Return the record in a JSON tree.

    Args:
        kind: The record's class. A field without a default is required; an unknown key is refused. A field ``schema``
            must have its default.
        tree: The parsed JSON.
        where: The name of the file, for the message.
        remedy: The last sentence of the message: what to do.
        what: What the file is, for the message. Defaults to "record".

    Raises:
        ProjectError: A key is missing, unknown, or of another type; the message names the file and the key.
    """
    schema = next((field.default for field in dataclasses.fields(cast(Any, kind)) if field.name == "schema"), None)
    received = tree.get("schema") if isinstance(tree, dict) else None
    if isinstance(schema, int) and (received != schema or isinstance(received, bool)):
        description = f"schema {received!r:.80}" if isinstance(tree, dict) else _received(tree)
        if isinstance(tree, dict) and "schema" not in tree:
            description = "an object without the key 'schema'"
        raise ProjectError(f"Expected the {what} of schema {schema} in {where}. Received: {description}. {remedy}")
    try:
        return cast(T, _record(kind, tree, ""))
    except _MismatchError as mismatch:
        key, expected, received = mismatch.args
        subject = f"'{key}' of type {expected}" if key else expected
        raise ProjectError(f"Expected {subject} in {where}. Received: {received}. {remedy}") from None


def read_record(kind: type[R], path: Path, *, remedy: str, what: str = "record") -> R:
    """Read the record in a JSON file; the arguments are those of `from_json`.

    Raises:
        ProjectError: The file is missing, too large, not JSON, of another schema, or not this record.
    """
    try:
        tree = parse_json(
            read_bounded(path, MAX_RECORD_BYTES), path.name, most=MAX_RECORD_BYTES, most_values=MAX_RECORD_VALUES
        )
    except OSError as error:
        raise ProjectError(f"Expected the {what} {path}. Received: {error.strerror or error}. {remedy}") from error
    except ValueError as error:
        raise ProjectError(f"Expected JSON in {path}. Received: {error}. {remedy}") from error
    return from_json(kind, tree, str(path), remedy=remedy, what=what)


@cache
def _fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Return the name, the type, and whether it is required, of each field of a dataclass."""
    hints = get_type_hints(kind)
    return tuple(
        (field.name, hints[field.name], field.default is field.default_factory is dataclasses.MISSING)
        for field in dataclasses.fields(kind)
        if field.init
    )


def _record(kind: Any, tree: Any, key: str) -> Any:
    fields = _fields(kind)
    known = {name for name, _, _ in fields}
    if unknown := [name for name in _object(tree, key) if name not in known]:
        listed = f"{unknown[0]!r:.80}" + (f" and {len(unknown) - 1} more" if unknown[1:] else "")
        keys = f"keys of {', '.join(sorted(known))}"
        raise _MismatchError("", keys + (f" as '{key}'" if key else ""), f"the unknown key {listed}")
    values = {}
    for name, hint, required in fields:
        inner = f"{key}.{name}" if key else name
        if name in tree:
            values[name] = _value(hint, tree[name], inner)
        elif required:
            raise _MismatchError(inner, _describe(hint), "nothing")
    return _consistent(kind, partial(kind, **values), key)


def _value(hint: Any, value: Any, key: str) -> Any:
    """Return a JSON value as the type of a field; raise `_MismatchError` if it has another type."""
    if hint in (Any, object):
        return value
    if isinstance(hint, type) and hasattr(hint, "from_dict"):  # a class with a JSON form of its own
        return _consistent(hint, partial(hint.from_dict, _object(value, key)), key)
    if dataclasses.is_dataclass(hint):
        return _record(hint, value, key)
    if hint in _NAMES:
        return _plain_value(hint, value, key)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union(args, value, key)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        raise _MismatchError(key, _describe(hint), f"{value!r:.80}")
    if origin is tuple:
        return _tuple(args, value, key)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        # Keys may be names of files, which need not be valid text.
        return {name: _value(args[1], item, f"{key}.{name:.40}") for name, item in _object(value, key).items()}
    raise TypeError(f"Expected a type that JSON has. Received: {hint!r} at {key}.")


def _consistent(kind: type[T], make: Callable[[], T], key: str) -> T:
    """Return an instance of a class; an error of its constructor becomes a `_MismatchError` with that message."""
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


def _plain_value(kind: Any, value: Any, key: str) -> Any:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise _mismatch(key, _NAMES[kind], value)
    if kind is float:
        try:
            value = float(value)
        except OverflowError:
            raise _mismatch(key, "a number", value) from None
        if not math.isfinite(value):
            raise _mismatch(key, "a finite number", value)
    if kind is str and any("\ud800" <= letter <= "\udfff" for letter in value):
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
    choices = [kind for kind in args if kind is not type(None)]
    if len(choices) == 1:
        return _value(choices[0], value, key)
    for kind in choices:
        with contextlib.suppress(_MismatchError):
            return _value(kind, value, key)
    raise _mismatch(key, _alternatives(args), value)


def _describe(hint: Any) -> str:
    if hint in _NAMES:
        return _NAMES[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        return _alternatives(args)
    return "a list" if origin is tuple else "an object"


def _alternatives(args: tuple[Any, ...]) -> str:
    return " or ".join(dict.fromkeys(map(_describe, args)))


def _mismatch(key: str, expected: str, value: Any) -> _MismatchError:
    return _MismatchError(key, expected, _received(value))


def _received(value: Any) -> str:
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else ascii(value)[:80]


def _plain(value: Any) -> Any:
    if hasattr(type(value), "to_dict"):
        return {name: _plain(item) for name, item in value.to_dict().items()}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
