"""Progress bars on standard error, where a person watches; none in a log file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from tqdm import tqdm

# disable=None: no bar where standard error is not a terminal
progress_bar = partial(tqdm, disable=None, dynamic_ncols=True)
_passing_bar = partial(progress_bar, leave=False, delay=1)  # for what is mostly done at once and never a result

AT_ONCE = 64  # calls that wait for a thread; Ctrl-C waits for no more than these
T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Sequence[T], description: str, unit: str = "img") -> Iterator[R]:
    """What the function gives for each item, in their order, with a progress bar."""
    with ThreadPoolExecutor() as pool, _passing_bar(total=len(items), desc=description, unit=unit) as bar:
        for start in range(0, len(items), AT_ONCE):
            for result in pool.map(function, items[start : start + AT_ONCE]):
                bar.update()
                yield result
