"""The files below ``artifacts/<recipe>/`` that a piece of code may read, by their names ``stage/file``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path


class UndeclaredError(AssertionError):
    """A stage asked for what it did not declare: a mistake in its code, not in what a person gave it."""


@dataclass(frozen=True)
class Artifacts:
    """Files of one recipe, all of them or the declared ones; as text it is their folder, for messages.

    Args:
        _root: ``artifacts/<recipe>``, which nobody else may ask for: what is joined to it would go round the names.
        declared: patterns of the names that may be asked for. Defaults to None: every one.
    """

    _root: Path
    declared: Sequence[str] | None = None

    def __str__(self) -> str:
        return str(self._root)

    def declares(self, name: str) -> bool:
        """Whether a name, or a pattern with all that fits it, may be asked for."""
        return self.declared is None or any(fnmatchcase(name, pattern) for pattern in self.declared)

    def path(self, name: str) -> Path:
        """Where a file is, or would be.

        Raises:
            UndeclaredError: it is none of the declared ones.
        """
        if not self.declares(name):
            raise UndeclaredError(f"Expected one of the declared files {list(self.declared or ())}. Received: {name}.")
        return self._root / name

    def has(self, name: str) -> bool:
        """Whether a file is there.

        Raises:
            UndeclaredError: it is none of the declared ones.
        """
        return self.path(name).is_file()

    def matching(self, pattern: str) -> list[str]:
        """Sorted names of the files that are there and fit a pattern such as ``build/*/*.plan``.

        Raises:
            UndeclaredError: it is none of the declared patterns, nor within one, whether a file fits or not.
        """
        self.path(pattern)
        return sorted(path.relative_to(self._root).as_posix() for path in self._root.glob(pattern) if path.is_file())
