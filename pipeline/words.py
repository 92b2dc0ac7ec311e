"""Numbers, lists, tables and sentences for people; the first three are those of ``export``."""

from __future__ import annotations

from export.words import aligned, count, listed

__all__ = ["aligned", "count", "listed", "sentence"]


def sentence(words: str) -> str:
    """A remark as a sentence: with a capital, unless it begins with the name of a file or the like, and a full stop.

    Args:
        words: such as "a convolution is FP32"; "" stays "".
    """
    first = words.partition(" ")[0]
    capital = f"{words[:1].upper()}{words[1:]}" if first.rstrip(",;:'").isalpha() else words
    return capital if not words or words.endswith((".", "!", "?")) else f"{capital}."
