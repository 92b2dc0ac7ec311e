"""Names of folders for classes, whatever the classes are called."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Final

UNSURE: Final = "_unsure"
_LONGEST: Final = 255  # bytes of a name
_REFUSED: Final = re.compile(
    "[/\\\\\0\ud800-\udbff\udc00-\udc7f\udd00-\udfff]"
)  # no system, or not each one, takes these


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """Return a folder's name for each class, no two of which are one folder on any file system.

    A class keeps its name where it can; another one gets a name with some digits of its hash.
    """
    taken = {_same(UNSURE)}
    names = {}
    for name in classes:
        folder = _REFUSED.sub("_", name)
        is_kept = folder == name != "" and not name.startswith(".") and len(_bytes(name)) <= _LONGEST
        stem = folder.lstrip(".") or "class"
        for digits in (8, 64):  # somebody may have a class of the shorter name
            if is_kept and _same(folder) not in taken:
                break
            folder, is_kept = shortened(stem, "", short_hash(name, digits)), True
        taken.add(_same(folder))
        names[name] = folder
    return names


def shortened(stem: str, ending: str, digits: str) -> str:
    """Return ``stem-digits.ending`` in at most 255 bytes, the stem cut if need be."""
    rest = f"-{digits}{ending}"
    room = max(0, _LONGEST - len(_bytes(rest)))
    return _bytes(stem)[:room].decode("utf-8", "ignore" if len(_bytes(stem)) > room else "surrogateescape") + rest


def short_hash(name: str, digits: int = 8) -> str:
    """Return the first hexadecimal digits of the sha256 of a name."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


def _same(name: str) -> str:
    """Return what is equal for names that are one on some file system: of any case, composed or not."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
