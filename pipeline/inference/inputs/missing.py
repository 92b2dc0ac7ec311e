"""What a person reads of an input that is not there, and the name that may have been meant."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from export.words import listed
from pipeline.inference.inputs.lists import URL
from pipeline.inference.inputs.paths import join
from pipeline.inference.inputs.patterns import looks_like_pattern
from pipeline.terminal.command_line import closest

MOST_NAMES = 10_000  # of a folder that are compared with a name that is not there


def none_exists(missing: Sequence[str]) -> str:
    """Return the message for inputs of which none exists.

    Args:
        missing: the inputs, in order; none where nothing was named.
    """
    if not missing:
        return "Expected an image or a folder of images. Received: nothing."
    if len(missing) == 1:
        path = missing[0]
        stop = "" if (why := why_missing(path)).endswith("?") else "."
        return f"Expected an image or a folder of images. Received: {path or repr(path)}, which {why}{stop}"
    return f"Expected images or folders of images. Received: {listed(missing)}, of which none exists."


def why_missing(path: str, search: bool = True) -> str:
    """Return why nothing is read for a path, as the end of a sentence that begins with it, without its stop.

    Args:
        path: it.
        search: whether to look for a name that is like it. Defaults to True.
    """
    if not path:
        return "is an empty name"
    if URL.match(path):
        return "is a URL; download it, and name the file"
    fault = "is a pattern that matches nothing" if looks_like_pattern(path) else "does not exist"
    near = nearest(path) if search else None
    return f"{fault}; did you mean {near!r}?" if near else fault


def nearest(path: str) -> str | None:
    """Return a path that exists and is like one that does not; None if there is none."""
    folder = "/" if path.startswith("/") else ""
    for name in path.strip("/").split("/"):
        if os.path.lexists(join(folder, name)):
            folder = join(folder, name)
            continue
        if looks_like_pattern(name):
            return None
        try:
            with os.scandir(folder or ".") as entries:
                names = [entry.name for entry in itertools.islice(entries, MOST_NAMES)]
        except OSError:
            return None
        near = closest(name, names, cutoff=0.6)
        return None if near is None else join(folder, near)
    return None
