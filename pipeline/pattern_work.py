"""How long a regular expression may take: Python tries every way to match, and patterns exist that have 2^255."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

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
