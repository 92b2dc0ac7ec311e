"""The images below a folder, sorted, with one folder in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PurePath

from pipeline.inference.inputs.found import Found, found_file, system_problem
from pipeline.inference.inputs.left_out import LeftOut
from pipeline.inference.output.folder import is_run_folder
from pipeline.recipe.messages import EXTENSIONS

OF_MACOS = "__MACOSX"  # a folder of what only macOS reads, as are files named ._*


def ending_of(name: str) -> str:
    """Return what `PurePath.suffix` returns for a name without slashes, in lower case."""
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def is_image_name(name: str) -> bool:
    """Return whether a name without slashes has an image's ending."""
    return ending_of(name) in EXTENSIONS and not name.startswith("._")


class Level:
    """One folder on the way down: the names that are still to come.

    Args:
        folder: its path; "" for the working directory.
        hidden: whether it is in a hidden folder, whose other files nobody misses. Defaults to False.
    """

    def __init__(self, folder: str, hidden: bool = False) -> None:
        self.folder = folder
        self.hidden = hidden
        self.names: list[str] = []  # of images and folders, the next one last
        self.folders: set[str] = set()
        self.filled = False  # an image was found in it, or it may hold some

    def path(self, name: str) -> str:
        """Return the path of a name in it."""
        return join(self.folder, name)

    def read(self, left_out: LeftOut, below: int) -> OSError | None:
        """Read the names, and count what is left out.

        Args:
            left_out: counts.
            below: number of characters of the path that go before a name in messages.

        Returns:
            OSError | None: why the folder was not read to its end.
        """
        try:
            with os.scandir(self.folder or ".") as entries:
                for entry in entries:
                    self._sort_in(entry, left_out, below)
        except OSError as error:
            return error
        finally:
            self.names.sort(reverse=True)
        return None

    def _sort_in(self, entry: os.DirEntry[str], left_out: LeftOut, below: int) -> None:
        name = entry.name
        if entry.is_dir(follow_symlinks=False):
            if name != OF_MACOS and not is_run_folder(entry.path):
                self.names.append(name)
                self.folders.add(name)
        elif entry.is_symlink() and leads_to_folder(entry):
            left_out.links.add(self.path(name)[below:])
        elif is_image_name(name):
            self.names.append(name)
        elif not self.hidden and _is_file(entry):
            left_out.add(name, ending_of(name), self.folder or ".")


def join(folder: str, name: str) -> str:
    """Return the path of a name in a folder; "" is the working directory."""
    return f"{folder}{name}" if not folder or folder.endswith("/") else f"{folder}/{name}"


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether a name in a folder is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def images_below(named: str, left_out: LeftOut, relative: bool = True) -> Iterator[Found]:
    """Yield what has an image's ending, at any depth, in the order of ``sorted(Path(named).rglob("*"))``.

    Links to folders are not followed, and the folders of runs, this one's too, are passed over. A folder that cannot be
    listed is an item.

    Args:
        named: the folder, or a link to one.
        left_out: counts the rest.
        relative: whether messages name folders relative to it. Defaults to True.
    """
    root = str(PurePath(named))
    root = "" if root == "." else root
    below = len(join(root, "x")) - 1 if relative else 0
    levels = [Level(root)]
    if error := levels[0].read(left_out, below):
        yield system_problem(named, "the folder cannot be listed", error)
    while levels:
        level = levels[-1]
        if not level.names:
            levels.pop()
            if levels and level.filled:
                levels[-1].filled = True
            elif levels:
                left_out.empty.add(level.folder[below:])
            continue
        name = level.names.pop()
        path = level.path(name)
        if name not in level.folders:
            level.filled = True
            yield found_file(path)
            continue
        inner = Level(path, level.hidden or name.startswith("."))
        if error := inner.read(left_out, below):
            inner.filled = True
            yield system_problem(path, "the folder cannot be listed", error)
        levels.append(inner)
