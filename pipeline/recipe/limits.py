"""Limits of a recipe's values, written beside the types in ``Annotated``; a string there is the key's help text.

Standard library only, Python 3.10 syntax.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from export.tensorrt.sidecar import BATCH_RULE, LARGEST_BATCH, keeps_batch_rule


@dataclass(frozen=True)
class Limit:
    """A condition on a value besides its type.

    Attributes:
        expected: Description of the accepted values, for messages and tables.
        holds: Whether a value of the key's type is accepted; not called with None.
    """

    expected: str
    holds: Callable[[Any], bool]


def within(least: float, most: float, expected: str = "") -> Limit:
    """Accept numbers between two bounds, both included.

    Args:
        least: Smallest number.
        most: Largest number.
        expected: Description for messages. Defaults to "": both bounds.
    """
    return Limit(expected or f"{least} to {most:,}", lambda number: least <= number <= most)


def at_least(least: float, expected: str = "") -> Limit:
    """Accept numbers from a lower bound on.

    Args:
        least: Smallest number.
        expected: Description for messages. Defaults to "": the bound.
    """
    return Limit(expected or f"at least {least}", lambda number: number >= least)


RECIPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # also the name of a folder
MOST_DENSE, LARGEST_DENSE = 16, 65_536  # more is a typing error, and fills the memory
DENSE = Limit(
    f"up to {MOST_DENSE} sizes from 1 to {LARGEST_DENSE:,}",
    lambda sizes: len(sizes) <= MOST_DENSE and all(1 <= size <= LARGEST_DENSE for size in sizes),
)
NAMED = Limit(
    "up to 100 letters, digits, '.', '_' and '-' (it names a folder)",
    lambda name: RECIPE_NAME.fullmatch(name) is not None,
)
VARIANT_NAMED = Limit(
    "names of lower-case letters, digits and '_' (they name files)",
    lambda name: re.fullmatch(r"[a-z0-9_]{1,100}", name) is not None,
)
ORDERED = Limit(BATCH_RULE, lambda profile: keeps_batch_rule(profile.min, profile.opt, profile.max))
EACH_ONCE = Limit(
    "at least one precision, each once", lambda chosen: len(chosen) > 0 and len(set(chosen)) == len(chosen)
)

Share = Annotated[float, within(0, 1, "a share from 0 to 1")]
BelowOne = Annotated[float, Limit("0 to below 1", lambda share: 0 <= share < 1)]
AboveZero = Annotated[float, Limit("a number above 0", lambda number: number > 0)]
Seconds = Annotated[float, Limit("0 to below 3600", lambda seconds: 0 <= seconds < 3600)]
Whole = Annotated[int, at_least(0, "0 or more")]
Positive = Annotated[int, at_least(1)]
BatchSize = Annotated[int, within(1, LARGEST_BATCH)]
