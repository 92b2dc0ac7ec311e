"""Finds paths that are named twice among millions: by hashes of 64 bits, and letter by letter where hashes recur."""

from __future__ import annotations

import functools
import os
from array import array
from collections.abc import Callable

import numpy as np


def hash_of(key: str) -> int:
    """Return 64 bits of a key, of 0 or more; they differ from process to process."""
    return hash(key) & 0xFFFF_FFFF_FFFF_FFFF


def absolute(path: str, working: str) -> str:
    """Return a path from the root on, without resolving links, so that two names of one place are equal.

    Args:
        path: as it was named.
        working: the working directory.
    """
    path = path if path[:1] == "/" else f"{working}/{path}"
    if "/.." in path and ".." in path.split("/"):  # behind a link, .. is not the folder that the name shows
        before, _, rest = f"{path}/".rpartition("/../")
        path = f"{_parent(before or '/')}/{rest}"
    if "//" not in path and "/./" not in path and path[-1] not in "/.":
        return path
    return os.path.normpath("/" + path.lstrip("/"))


@functools.lru_cache(maxsize=1024)
def _parent(folder: str) -> str:
    return os.path.realpath(f"{folder}/..")


def repeats(hashes: array[int], identity: Callable[[int], tuple[str, int]]) -> tuple[array[int], dict[int, int]]:
    """Find what was named before.

    Args:
        hashes: of the keys of all items, in their order.
        identity: gives an item's key and its place in an archive.

    Returns:
        tuple[array[int], dict[int, int]]: items with key and place of an earlier one, rising; and items with the key of
        an earlier one and another place, each with how many places its key had until then, itself included.
    """
    numbers = np.frombuffer(hashes, np.uint64) if hashes else np.zeros(0, np.uint64)
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    as_before = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    same = array("Q")
    others: dict[int, int] = {}
    seen: dict[str, set[int]] = {}
    last = -1
    for index in map(int, as_before):
        if index != last + 1 or last < 0:  # a hash that was not seen before; its first item is the one before
            key, place = identity(int(order[index - 1]))
            seen = {key: {place}}
        item, last = int(order[index]), index
        key, place = identity(item)
        places = seen.setdefault(key, set())
        if place in places:
            same.append(item)
            continue
        places.add(place)
        if len(places) > 1:
            others[item] = len(places)
    return array("Q", np.sort(np.frombuffer(same, np.uint64)).tobytes()) if same else same, others
