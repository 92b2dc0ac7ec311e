"""Quoted patterns such as 'photos/*.jpg', matched as a shell does, sorted, one folder a level in memory."""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from collections.abc import Callable, Iterator

from pipeline.inference.inputs.found import Found, system_problem
from pipeline.inference.inputs.paths import join, leads_to_folder
from pipeline.inference.output.folder import is_run_folder

_SIGNS = re.compile(r"[*?[]")
ANY_DEPTH = "**"


def looks_like_pattern(path: str) -> bool:
    """Return whether a path holds a sign of a pattern: ``*``, ``?`` or ``[``."""
    return _SIGNS.search(path) is not None


class _Level:
    """The matching names of one folder that are still to come, and which part of the pattern is next below them."""

    def __init__(self, folder: str, names: list[str], folders: set[str], part: int) -> None:
        self.folder, self.names, self.folders, self.part = folder, names, folders, part


def matches(pattern: str) -> Iterator[str | Found]:
    """Yield the paths that a pattern matches, sorted, or a problem for a folder that cannot be listed.

    ``*``, ``?`` and ``[...]`` match within a name, and no dot at its begin. ``**`` stands for any number of folders; it
    follows no link. At the end, ``**`` and ``**/*`` stand for the folder itself, which holds everything below. No sign
    matches the folder of a run.
    """
    parts = _parts(pattern)
    levels: list[_Level] = []
    yield from _enter(levels, "/" if pattern.startswith("/") else "", 0, parts)
    while levels:
        level = levels[-1]
        if not level.names:
            levels.pop()
            continue
        name = level.names.pop()
        path = join(level.folder, name)
        if parts[level.part] != ANY_DEPTH:
            yield from _enter(levels, path, level.part + 1, parts)
            continue
        matched = _matcher(parts[level.part + 1])(name)
        if name in level.folders and not name.startswith("."):  # what is in it comes after the name itself
            yield from _enter(levels, path, level.part, parts)
        if matched:
            yield from _enter(levels, path, level.part + 2, parts)


def _parts(pattern: str) -> list[str]:
    parts: list[str] = []
    for part in pattern.split("/"):
        if part not in ("", ".") and not (part == ANY_DEPTH and parts[-1:] == [ANY_DEPTH]):
            parts.append(part)
    if parts[-2:] == [ANY_DEPTH, "*"]:
        parts.pop()
    return parts


def _enter(levels: list[_Level], folder: str, part: int, parts: list[str]) -> Iterator[str | Found]:
    """Yield the folder if the pattern ends there; else put the names that match its next part on the levels."""
    while part < len(parts) and not looks_like_pattern(parts[part]):
        folder = join(folder, parts[part])
        part += 1
    if parts[part:] in ([], [ANY_DEPTH]):
        if os.path.lexists(folder or ".") and (part == len(parts) or os.path.isdir(folder or ".")):
            yield folder or "."
        return
    any_depth = parts[part] == ANY_DEPTH
    fits = _matcher(parts[part + 1] if any_depth else parts[part])
    last = part == len(parts) - 1
    names: list[str] = []
    folders: set[str] = set()
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                if is_run_folder(entry.path):
                    continue
                if any_depth and entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                    names.append(entry.name)
                elif fits(entry.name) and (any_depth or last or leads_to_folder(entry)):
                    names.append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield system_problem(folder or ".", "the folder cannot be listed", error)
    levels.append(_Level(folder, sorted(names, reverse=True), folders, part))


@functools.lru_cache(maxsize=64)
def _matcher(part: str) -> Callable[[str], bool]:
    """A test of names for one part of a pattern."""
    compiled = re.compile(fnmatch.translate(part))
    dots = part.startswith(".")
    return lambda name: (dots or not name.startswith(".")) and compiled.match(name) is not None
