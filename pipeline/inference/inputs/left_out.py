"""What lies beside the images that are taken, counted for a person."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from export.words import count
from pipeline.data.folders import IGNORED_NAMES, NO_ENDING, PLURALS

READ_WHERE_NAMED = (".tar", ".parquet")  # found below a folder they are counted, not opened
NO_PATH = "row without a path"  # of a table
_PLURALS = {**PLURALS, NO_PATH: "rows without a path"}
OTHER_ENDINGS = ".(other)"
MOST_ENDINGS = 1_000  # names such as core.12345 may each have an ending of their own
LONGEST_ENDING = 20  # characters
SHOWN = 3


def in_words(numbers: Mapping[str, int]) -> str:
    """Return numbers by ending for a sentence: "3 .heic, 1 file without an ending"."""
    return ", ".join(count(number, kind, _PLURALS.get(kind, kind)) for kind, number in numbers.items())


def by_number(numbers: Counter[str]) -> dict[str, int]:
    """Return numbers by ending, the largest first."""
    return dict(sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0])))


@dataclass
class Some:
    """How many there are, and the names of the first ones."""

    number: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more."""
        self.number += 1
        if len(self.names) <= SHOWN:
            self.names.append(name)

    def __str__(self) -> str:
        more = self.number - SHOWN
        return ", ".join(self.names) if more <= 1 else f"{', '.join(self.names[:SHOWN])} and {more:,} more"


class LeftOut:
    """Counts what is left out of a folder, an archive or a list.

    Args:
        where: it in words, for `lines`, such as "below photos".
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.endings: Counter[str] = Counter()
        self.links = Some()
        self.empty = Some()
        self.archives: dict[str, str] = {}  # by ending, the folder of the first one

    def add(self, name: str, ending: str, folder: str | None = None) -> None:
        """Count a file that is no image by its name.

        Args:
            name: without its folder.
            ending: of the name, in lower case; "" for none.
            folder: where it lies, on the disk. Defaults to None: in an archive.
        """
        if name.startswith((".", "__MACOSX")) or name.lower() in IGNORED_NAMES:
            return
        known = len(self.endings) - (OTHER_ENDINGS in self.endings)
        if len(ending) > LONGEST_ENDING or (ending not in self.endings and known >= MOST_ENDINGS):
            ending = OTHER_ENDINGS
        self.endings[ending or NO_ENDING] += 1
        if folder is not None and ending in READ_WHERE_NAMED:
            self.archives.setdefault(ending, folder)

    def lines(self) -> list[str]:
        """Return the messages: "left out below photos: 3 .heic, 1 file without an ending"."""
        lines = [f"left out {self.where}: {in_words(by_number(self.endings))}"] if self.endings else []
        for ending, folder in sorted(self.archives.items()):
            pattern = shlex.quote(f"{folder}/*{ending}")
            lines.append(f"{ending} files are read where they are named, not {self.where}: name {pattern}")
        for some, nouns in (
            (self.empty, ("folder without an image", "folders without an image")),
            (self.links, ("link to a folder, which is not followed", "links to folders, which are not followed")),
        ):
            if some.number:
                lines.append(f"left out {self.where}: {count(some.number, *nouns)} ({some})")
        return lines
