"""Numbers in sentences, and sentences. Standard library only, Python 3.10 syntax."""

from __future__ import annotations


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with what it counts: "1 image", "2 images", "1,234 images".

    Args:
        number: how many; zero is plural, as in "0 images".
        noun: for exactly one.
        plural: for any other number, where it is not the noun with an "s".
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def sentence(words: str) -> str:
    """A remark as a sentence: with a capital, unless it begins with the name of a file or the like, and a full stop.

    Args:
        words: such as "a convolution is FP32"; "" stays "".
    """
    first = words.partition(" ")[0]
    capital = f"{words[:1].upper()}{words[1:]}" if first.rstrip(",;:'").isalpha() else words
    return capital if not words or words.endswith((".", "!", "?")) else f"{capital}."
