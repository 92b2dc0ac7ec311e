"""Some rows of the arrays in an .npz file, which may be far larger than the memory; bounds as in `archives`.

NumPy and the standard library only, Python 3.10 syntax.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.artifacts.archives import ARRAYS, CHUNK, Form, checked_members, open_zip, reading


def array_forms(path: Path, names: Sequence[str], expected: str = ARRAYS) -> dict[str, Form]:
    """Return shapes and types of arrays, without reading their values.

    Args:
        path: The file.
        names: Arrays that it must hold.
        expected: What the file should be, for the message. Defaults to `ARRAYS`.

    Raises:
        FileNotFoundError: No such file.
        DataError: As from `pipeline.artifacts.archives.read_arrays`.
    """
    with reading(path, expected), open_zip(path) as archive:
        return {name: form for name, (_, form) in checked_members(archive, names, path).items()}


def each_row(path: Path, name: str, rows: Iterable[int] | None = None, expected: str = ARRAYS) -> Iterator[np.ndarray]:
    """Yield rows of an array, of which one at a time is in memory.

    Args:
        path: The file.
        name: The array.
        rows: Indices along its first axis, from 0, ascending. Defaults to None: all.
        expected: What the file should be, for the message. Defaults to `ARRAYS`.

    Raises:
        FileNotFoundError: No such file.
        DataError: As from `pipeline.artifacts.archives.read_arrays`, there is no such row, or an array by columns.
    """
    with reading(path, expected), open_zip(path) as archive:
        ((member, form),) = checked_members(archive, (name,), path).values()
        if not form.shape or (form.by_columns and len(form.shape) > 1):
            raise ValueError(f"{name} of shape {form.shape}, which is not stored row by row")
        length = math.prod(form.shape[1:]) * form.dtype.itemsize
        begin = member.file_size - form.shape[0] * length
        with archive.open(member) as file:
            for row in range(form.shape[0]) if rows is None else rows:
                if not 0 <= row < form.shape[0]:
                    raise ValueError(f"no row {row:,} in {name} of shape {form.shape}")
                start = begin + row * length
                while (here := file.tell()) != start:  # a packed member too; one long seek would take 16 MB and more
                    file.seek(min(start, here + CHUNK))
                data = file.read(length)
                if len(data) != length:
                    raise ValueError(f"{name} ends within row {row:,}")
                yield np.frombuffer(data, form.dtype).reshape(form.shape[1:])


def read_rows(path: Path, name: str, rows: Sequence[int], expected: str = ARRAYS) -> np.ndarray:
    """Read some rows of an array, in the order of their indices.

    Arguments and errors are those of `each_row`, but for ``rows``, which may be in any order.
    """
    form = array_forms(path, (name,), expected)[name]
    ascending, places = np.unique(np.asarray(rows, np.int64), return_inverse=True)
    found = np.empty((len(ascending), *form.shape[1:]), form.dtype)
    for place, row in enumerate(each_row(path, name, ascending.tolist(), expected)):
        found[place] = row
    return found if len(ascending) == len(rows) and (np.diff(places) > 0).all() else found[places]
