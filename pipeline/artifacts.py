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
    """Files of one recipe, all of them or the declared ones.

    Attributes:
        root: ``artifacts/<recipe>``; for messages, and for ``files`` to look in.
        declared: patterns of the names that may be asked for. Defaults to None: every one.
    """

    root: Path
    declared: Sequence[str] | None = None

    def path(self, name: str) -> Path:
        """Where a file is, or would be.

        Raises:
            UndeclaredError: it is none of the declared ones.
        """
        if self.declared is not None and not any(fnmatchcase(name, pattern) for pattern in self.declared):
            raise UndeclaredError(f"Expected one of the declared files {list(self.declared)}. Received: {name}.")
        return self.root / name

    def has(self, name: str) -> bool:
        """Whether a file is there.

        Raises:
            UndeclaredError: it is none of the declared ones.
        """
        return self.path(name).is_file()

    def matching(self, pattern: str) -> list[str]:
        """Sorted names of the files that are there and fit a pattern such as ``build/*/*.plan``.

        Raises:
            UndeclaredError: one that fits is none of the declared ones.
        """
        found = sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern) if path.is_file())
        return [name for name in found if self.path(name)]
