"""Images in a column of a Parquet file: which column, how many rows, and their bytes read forward in small batches."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, BinaryIO

from export.errors import DataError, ImageError
from export.words import count, listed
from pipeline.inference.inputs.found import Found, problem

if TYPE_CHECKING:
    import pyarrow.parquet

BUFFER = 2**20  # bytes that are read of a column at a time, instead of a whole row group
BATCH_BYTES = 2**22  # of images that are decoded from their pages at a time, about
MOST_BATCH = 64  # rows
REACH = 512  # rows before and behind one that other threads may ask for
MOST_ROWS, MOST_BYTES = 4096, 2**27  # read and not asked for yet; the oldest are dropped, and read again if need be


def images_in_parquet(file: BinaryIO, path: str, place: str, mtime_ns: int, column: str | None) -> Iterator[Found]:
    """Yield an item a row; a null shows when it is read. What cannot be opened is one problem.

    Args:
        file: open for reading bytes.
        path: of the Parquet file, as it was named.
        place: see `Found`.
        mtime_ns: likewise.
        column: the one with the images. Defaults, if None, to the only one that can hold them.

    Raises:
        DataError: no such column, or several; the message names them.
    """
    try:
        table = opened(file)
    except ImageError as error:
        yield problem(path, str(error), error.status, mtime_ns=mtime_ns)
        return
    column_of_bytes(table, path, column)
    for row in range(table.metadata.num_rows):
        yield Found(f"{path}/{row}", "parquet", place, row, -1, mtime_ns)


def opened(file: BinaryIO) -> pyarrow.parquet.ParquetFile:
    """Open a Parquet file by its footer; nothing else is read.

    Raises:
        ImageError: it is damaged, encrypted or no Parquet file.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if "encrypt" in reason.lower() or "decrypt" in reason.lower():
            raise ImageError("an encrypted Parquet file; write it without encryption", "unsupported") from error
        file.seek(0)
        if file.read(4) == b"PARE":
            raise ImageError("an encrypted Parquet file; write it without encryption", "unsupported") from error
        raise ImageError(f"no whole Parquet file: {reason}") from error


def column_of_bytes(table: pyarrow.parquet.ParquetFile, path: str, column: str | None) -> str:
    """Return the column with the bytes of the images as Parquet names it, such as "image.bytes".

    Args:
        table: an open file.
        path: of it, for messages.
        column: its name; None: the only one that can hold images.

    Raises:
        DataError: there is none, or there are several.
    """
    fitting = {field.name: leaf for field in table.schema_arrow if (leaf := _leaf(field)) is not None}
    chosen = next(iter(fitting)) if column is None and len(fitting) == 1 else column
    if chosen is not None and chosen in fitting:
        if (number := table.schema_arrow.names.count(chosen)) > 1:
            raise DataError(
                f"Expected one column {chosen!r} in {path}. Received: {number} of that name. Rename those without the "
                "images."
            )
        return fitting[chosen]
    every = (f"{field.name!r} ({field.type})"[:100] for field in table.schema_arrow)
    names = listed(map(repr, fitting) if fitting else every)
    if column is None and fitting:
        raise DataError(f"Expected one column of bytes in {path}. Received: {names}. Name one: --column NAME.")
    wanted = f"a column {column!r} of bytes" if column else "a column of bytes, or of {bytes, path}"
    raise DataError(f"Expected {wanted} in {path}. Received: {names or 'no column'}.")


def _leaf(field: Any) -> str | None:
    """The path of a column's bytes; None if it holds none."""
    import pyarrow.types as types

    def is_bytes(kind: Any) -> bool:
        if types.is_dictionary(kind):
            kind = kind.value_type
        tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
        return any(test(kind) for test in tests)

    if is_bytes(field.type):
        return str(field.name)
    if types.is_struct(field.type):
        index = field.type.get_field_index("bytes")
        if index >= 0 and is_bytes(field.type.field(index).type):
            return f"{field.name}.bytes"
    return None


class ParquetRows:
    """Reads the rows of a column forward; what was read is kept until it is asked for, within bounds.

    It is not thread-safe.

    Args:
        file: open for reading bytes.
        path: of it, for messages.
        column: see `column_of_bytes`.

    Raises:
        ImageError: it cannot be opened.
    """

    def __init__(self, file: BinaryIO, path: str, column: str | None) -> None:
        self._table = opened(file)
        self._leaf = column_of_bytes(self._table, path, column)
        about = self._table.metadata
        self._ends = list(accumulate(about.row_group(index).num_rows for index in range(about.num_row_groups)))
        self._damaged: dict[int, tuple[int, str]] = {}  # by row group, the first row that cannot be read, and why
        self._kept: OrderedDict[int, bytes | ImageError] = OrderedDict()
        self._bytes = 0
        self._group, self._next = -1, -1  # the row that is read next, and its group
        self._first_kept = 0
        self._batches: Iterator[Any] = iter(())

    def row(self, number: int, largest: int) -> bytes:
        """Return the bytes of a row, and forget them.

        Args:
            number: of the row, from 0 on; best in about rising order.
            largest: bytes; a larger image is refused.

        Raises:
            ImageError: it is null, too large, or cannot be read.
        """
        if not 0 <= number < (self._ends[-1] if self._ends else 0):
            raise ImageError("the Parquet file has no such row", "missing")
        group = bisect_right(self._ends, number)
        if number not in self._kept and (self._group < 0 or not self._next <= number <= self._next + REACH):
            self._open(group)
            self._first_kept = number - REACH
        while number not in self._kept:
            if group in self._damaged and number >= self._damaged[group][0]:
                raise ImageError(self._damaged[group][1])
            if self._next == self._ends[self._group]:
                self._open(self._group + 1)
            self._read_batch(largest, number)
        value = self._kept.pop(number)
        if isinstance(value, ImageError):
            raise value
        self._bytes -= len(value)
        return value

    def _open(self, group: int) -> None:
        """Go to the first row of a row group."""
        about = self._table.metadata.row_group(group)
        columns = (about.column(index) for index in range(about.num_columns))
        size = next(column.total_uncompressed_size for column in columns if column.path_in_schema == self._leaf)
        rows = max(1, about.num_rows)
        batch = max(1, min(MOST_BATCH, BATCH_BYTES * rows // max(1, size)))  # the same whichever row is asked first
        self._group, self._next = group, self._ends[group] - about.num_rows
        self._batches = self._table.iter_batches(batch, row_groups=[group], columns=[self._leaf], use_threads=False)

    def _read_batch(self, largest: int, wanted: int) -> None:
        """Read the next rows of the row group; damage ends it."""
        import pyarrow

        try:
            batch = next(self._batches)
            values = batch.column(0)
            values = values.flatten()[0] if pyarrow.types.is_struct(values.type) else values
            values.validate(full=True)
            values = values.dictionary_decode() if pyarrow.types.is_dictionary(values.type) else values
        except (pyarrow.ArrowException, OSError, ValueError, StopIteration) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else "fewer rows than stated"
            self._damaged[self._group] = (self._next, f"a damaged row group: {reason}")
            self._next = self._ends[self._group]
            return
        for number, value in enumerate(values, self._next):
            if number >= self._first_kept:
                self._keep(number, _content(value, largest), wanted)
        self._next += len(values)

    def _keep(self, number: int, value: bytes | ImageError, wanted: int) -> None:
        """Keep a row, and drop the oldest ones but the wanted one, as far as the bounds ask."""
        if number in self._kept:
            return
        self._kept[number] = value
        self._bytes += len(value) if isinstance(value, bytes) else 0
        while len(self._kept) > MOST_ROWS or (self._bytes > MOST_BYTES and len(self._kept) > 1):
            if wanted in self._kept:
                self._kept.move_to_end(wanted)
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest) if isinstance(oldest, bytes) else 0


def _content(value: Any, largest: int) -> bytes | ImageError:
    """The bytes of an image, or why there are none."""
    buffer = value.as_buffer()
    if buffer is None:
        return ImageError("the row has no image: null", "missing")
    if buffer.size > largest:
        return ImageError(f"{count(buffer.size, 'byte')}, more than the {largest:,} allowed", "too_large")
    return bytes(buffer.to_pybytes())
