"""Numbers and lists in sentences. Standard library only, Python 3.10 syntax."""

from __future__ import annotations

from collections.abc import Iterable


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with what it counts: "1 image", "2 images", "1,234 images".

    Args:
        number: how many; zero is plural, as in "0 images".
        noun: for exactly one.
        plural: for any other number, where it is not the noun with an "s".
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(names: Iterable[object], most: int = 5, separator: str = ", ") -> str:
    """Names in a row, as many as a person reads, and how many there are besides: "a, b, c, d, e and 42 more".

    Args:
        names: of any number.
        most: so many are named; one more is named too, because "and 1 more" is as long as a name.
        separator: stands between them; "; " where they are sentences.
    """
    every = [str(name) for name in names]
    if len(every) <= most + 1:
        return separator.join(every)
    return f"{separator.join(every[:most])} and {len(every) - most:,} more"
