"""Numbers and lists in sentences: those of ``export``, which imports nothing of this package."""

from export.words import count, listed

__all__ = ["count", "listed"]
