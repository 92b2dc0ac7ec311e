"""Numbers in sentences. Standard library only, Python 3.10 syntax."""

from __future__ import annotations


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with what it counts: "1 image", "2 images", "1,234 images".

    Args:
        number: how many; zero is plural, as in "0 images".
        noun: for exactly one.
        plural: for any other number, where it is not the noun with an "s".
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
