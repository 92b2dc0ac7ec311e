"""Parses JSON that somebody else wrote: never deeper, longer or larger than the files of this project are.

Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

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
