"""Everything that a person names becomes a plan on the disk."""

from __future__ import annotations

import itertools
import os
import shlex
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, BinaryIO

from export.errors import DataError
from export.words import count, listed
from pipeline.data.image_files import LARGEST_FILE
from pipeline.inference.inputs.found import BESIDE_PLAN, Found, found_file, problem, system_problem
from pipeline.inference.inputs.left_out import READ_WHERE_NAMED, LeftOut, Some, by_number, in_words
from pipeline.inference.inputs.lists import URL, paths_in_table, paths_in_text
from pipeline.inference.inputs.missing import none_exists, why_missing
from pipeline.inference.inputs.parquet import images_in_parquet
from pipeline.inference.inputs.paths import ending_of, images_below
from pipeline.inference.inputs.patterns import looks_like_pattern, matches
from pipeline.inference.inputs.plan import Archive, Plan, PlanWriter
from pipeline.inference.inputs.standard_input import (
    EXPECTED,
    HEAD,
    Copied,
    copy_beside,
    kind_of,
    opened_input,
    read_head,
)
from pipeline.inference.inputs.tar import HEADER, images_in_tar
from pipeline.inference.inputs.unique import absolute
from pipeline.recipe.messages import EXTENSIONS

STANDARD_INPUT = "-"
LIST_ENDINGS = (".txt", ".csv")
COMPRESSED = {  # endings of compressed tars, and what uncompresses them
    (".tar.gz", ".tgz"): "gunzip",
    (".tar.bz2", ".tbz", ".tbz2"): "bunzip2",
    (".tar.xz", ".txz"): "unxz",
    (".tar.zst", ".tzst"): "unzstd",
}
COMPRESSED_BEGINS = {  # the first bytes of the same, for those that are named .tar
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\0": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
OTHER_ARCHIVES = {".zip": b"PK", ".7z": b"7z\xbc\xaf\x27\x1c", ".rar": b"Rar!"}  # ending: first bytes
RECENT_LINES = 1024  # of a list that are remembered
ARCHIVE_ENDINGS = (*READ_WHERE_NAMED, *itertools.chain(*COMPRESSED))
SUGGESTIONS = 5  # missing inputs for which a like name is looked for


def make_plan(
    inputs: Sequence[str],
    lists: Sequence[str],
    file: Path,
    *,
    column: str | None = None,
    largest_file: int = LARGEST_FILE,
    stdin: BinaryIO | None = None,
) -> Plan:
    """List every input, and write the plan.

    The order is that of the inputs, then of the lists. A path that is named twice is one item, at its first place.

    Args:
        inputs: files, folders, patterns, tars and Parquet files; "-" is standard input.
        lists: text files with a path a line, and CSV files; "-" is standard input.
        file: the plan's file; its folder is created. What comes by standard input is kept beside it.
        column: of CSV and Parquet files, where the images are. Defaults to None: found by its name or type.
        largest_file: bytes of an image on standard input. Defaults to 512 MiB.
        stdin: standard input. Defaults to None: this process's.

    Raises:
        DataError: no input exists or there is no image at all, a list that cannot be read, no such column.
    """
    with PlanWriter(file) as writer:
        listing = _Listing(file, column, largest_file, stdin)
        for found in listing.all(inputs, lists):
            writer.add(found)
        if len(writer) == len(listing.missing):
            raise DataError(listing.why_nothing(inputs))
        return writer.finish(listing.facts())


class _Listing:
    """Goes through the inputs, and keeps what is to be said of them.

    Args:
        file: see `make_plan`, as are the others.
        column: likewise.
        largest_file: likewise.
        stdin: likewise.
    """

    def __init__(self, file: Path, column: str | None, largest_file: int, stdin: BinaryIO | None) -> None:
        self._file, self._column, self._largest_file, self._stdin = file, column, largest_file, stdin
        self._left_out: list[LeftOut] = []
        self._of_tars = LeftOut("")
        self._tars = Some()
        self._gone_through: set[str] = set()  # folders and archives
        self._archives: dict[str, Archive] = {}
        self.missing: list[str] = []  # inputs that do not exist

    def all(self, inputs: Sequence[str], lists: Sequence[str]) -> Iterator[Found]:
        """Yield what is found, in order."""
        if STANDARD_INPUT in inputs and STANDARD_INPUT in lists:
            raise DataError("Expected standard input once. Received: - among the inputs and as a list. Leave one out.")
        for path in dict.fromkeys(inputs):
            yield from self._from_standard_input() if path == STANDARD_INPUT else self._named(path)
        for path in dict.fromkeys(lists):
            yield from self._list(path)

    def facts(self) -> dict[str, Any]:
        """Return what `PlanWriter.finish` takes."""
        if self._tars.number:
            others = count(self._tars.number - 1, "more tar")
            self._of_tars.where = f"of {self._tars.names[0]}" + (f" and {others}" if self._tars.number > 1 else "")
        all_left_out = [*self._left_out, self._of_tars]
        total: Counter[str] = Counter()
        for one in all_left_out:
            total.update(one.endings)
        return {
            "left_out": by_number(total),
            "notes": [line for one in all_left_out for line in one.lines()],
            "archives": {place: astuple(archive) for place, archive in self._archives.items()},
        }

    def why_nothing(self, inputs: Sequence[str]) -> str:
        """Return the message for inputs without an image."""
        absent = set(self.missing)
        there = [path for path in inputs if path not in absent]
        if not there:
            return none_exists(self.missing)
        others = in_words(self.facts()["left_out"])
        advice = "Convert those that are images"
        for ending, folder in itertools.chain.from_iterable(one.archives.items() for one in self._left_out):
            advice = f"Name those whose images are to be read: {shlex.quote(f'{folder}/*{ending}')}"
        only = f", but {others}. {advice}" if others else ""
        return f"Expected images ({', '.join(sorted(EXTENSIONS))}). Received: none in {listed(there)}{only}."

    def _named(self, path: str) -> Iterator[Found]:
        """Yield what one input names."""
        try:
            facts = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(path):
                yield found_file(path)
            elif looks_like_pattern(path):
                yield from self._pattern(path)
            else:
                yield self._missing(path)
        except OSError as error:
            if isinstance(error, PermissionError) and looks_like_pattern(path):
                yield from self._pattern(path)
            else:
                yield found_file(path)  # there may be something; decoding says why it cannot be read
        else:
            yield from self._existing(path, facts, None)

    def _missing(self, path: str) -> Found:
        self.missing.append(path)
        return problem(path, why_missing(path, search=len(self.missing) <= SUGGESTIONS), "missing")

    def _pattern(self, pattern: str) -> Iterator[Found]:
        left_out = LeftOut(f"below {pattern}")
        self._left_out.append(left_out)
        matched = False
        for match in matches(pattern):
            matched = True
            if isinstance(match, Found):
                yield match
                continue
            try:
                facts = os.stat(match)
            except OSError:
                yield found_file(match)
            else:
                yield from self._existing(match, facts, left_out)
        if not matched:
            yield self._missing(pattern)

    def _existing(self, path: str, facts: os.stat_result, left_out: LeftOut | None) -> Iterator[Found]:
        """Yield a file, or what is in a folder or an archive."""
        if stat.S_ISDIR(facts.st_mode):
            if self._is_named_again(path):
                return
            counts = left_out or LeftOut(f"below {path}")
            if left_out is None:
                self._left_out.append(counts)
            yield from images_below(path, counts, relative=left_out is None)
        elif stat.S_ISREG(facts.st_mode) and path.lower().endswith(ARCHIVE_ENDINGS):
            yield from self._archive(path)
        elif stat.S_ISREG(facts.st_mode) and (kind := _other_archive(path)):
            yield problem(path, kind, "unsupported", mtime_ns=facts.st_mtime_ns)
        elif left_out is None and _is_list(path):
            reason = f"text, not an image; if it is a list of images: --list {shlex.quote(path)}"
            yield problem(path, reason, "not_an_image", mtime_ns=facts.st_mtime_ns)
        else:
            yield found_file(path)

    def _line(self, path: str) -> Iterator[Found]:
        """Yield what a line of a list names: a file, or the images of an archive."""
        if path.lower().endswith(ARCHIVE_ENDINGS) and os.path.isfile(path):
            yield from self._archive(path)
            return
        found = found_file(path)
        if found.size > 0 and (kind := _other_archive(path)):
            found = problem(path, kind, "unsupported", mtime_ns=found.mtime_ns)
        if found.size < 0 and URL.match(path) and not os.path.lexists(path):
            found = problem(path, why_missing(path, search=False), "missing")
        elif found.size < 0 and os.path.isdir(path):
            found = problem(path, "a folder; a list names files, folders are named as inputs", "not_a_file")
        yield found

    def _lines(self, lines: Iterable[str | Found]) -> Iterator[Found]:
        recent: dict[str, None] = {}  # so that a path that stands there a million times is looked at once
        for line in lines:
            if not isinstance(line, str):
                yield line
            elif line not in recent:
                if len(recent) == RECENT_LINES:
                    recent.clear()
                recent[line] = None
                yield from self._line(line)

    def _list(self, path: str) -> Iterator[Found]:
        """Yield what a list names."""
        if not path:
            raise DataError("Expected a list of paths after --list. Received: an empty name.")
        if path == STANDARD_INPUT:
            stream = opened_input(self._stdin)
            yield from self._text(stream, read_head(stream), "standard input")
            return
        try:
            if path.lower().endswith(".csv"):
                left_out = LeftOut(f"of {path}")
                self._left_out.append(left_out)
                yield from self._lines(paths_in_table(Path(path), self._column, left_out))
                return
            with open(path, "rb") as file:
                yield from self._text(file, file.read(HEAD), path)
        except OSError as error:
            raise DataError(f"Expected a list of paths. Received: {path}: {error.strerror or error}.") from error

    def _text(self, stream: BinaryIO, head: bytes, name: str) -> Iterator[Found]:
        if (kind := kind_of(head)) != "list":
            what = {"image": "an image. Name it without --list", "tar": "a tar. Name it without --list"}.get(kind, kind)
            raise DataError(f"Expected a list with a path a line. Received: {name}, {what}.")
        yield from self._lines(paths_in_text(stream, name, head))

    def _from_standard_input(self) -> Iterator[Found]:
        stream = opened_input(self._stdin)
        head = read_head(stream)
        kind = kind_of(head)
        if kind == "image":
            copy = copy_beside(self._file, head, stream, self._largest_file)
            if copy.too_large:
                yield problem(STANDARD_INPUT, f"more than the {count(self._largest_file, 'byte')} allowed", "too_large")
            else:
                place = BESIDE_PLAN + copy.name
                yield Found(STANDARD_INPUT, "file", place, 0, copy.size)
        elif kind == "tar":
            copy = copy_beside(self._file, head, stream)
            yield from self._members(str(self._file.with_name(copy.name)), STANDARD_INPUT, copy)
        elif kind == "list":
            yield from self._lines(paths_in_text(stream, "standard input", head))
        else:
            raise DataError(f"{EXPECTED} Received: {kind}.")

    def _is_named_again(self, path: str) -> bool:
        """Whether a folder or archive was gone through before; from now on it counts as that."""
        key = absolute(path, os.getcwd())
        is_known = key in self._gone_through
        self._gone_through.add(key)
        return is_known

    def _archive(self, path: str) -> Iterator[Found]:
        """Yield the images of a tar or a Parquet file, once."""
        if self._is_named_again(path):
            return
        lower = path.lower()
        for endings, tool in COMPRESSED.items():
            if lower.endswith(endings):
                reason = f"a compressed tar; uncompress it first: {tool} {shlex.quote(path)}"
                yield problem(path, reason, "unsupported")
                return
        yield from self._members(path, path)

    def _members(self, file_path: str, path: str, copy: Copied | None = None) -> Iterator[Found]:
        place = path if copy is None else BESIDE_PLAN + copy.name
        try:
            with open(file_path, "rb", buffering=0) as file:
                facts = os.fstat(file.fileno())
                time = facts.st_mtime_ns if copy is None else 0
                if path.lower().endswith(".parquet"):
                    self._archives[place] = Archive(facts.st_size, time, self._column)
                    yield from images_in_parquet(file, path, place, time, self._column)
                    return
                if tool := _uncompressing(file):
                    quoted, plain = shlex.quote(path), shlex.quote(f"{path.removesuffix('.tar')}-plain.tar")
                    reason = f"a compressed tar; uncompress it first: {tool} < {quoted} > {plain}"
                    yield problem(path, reason, "unsupported", mtime_ns=time)
                    return
                self._archives[place] = Archive(facts.st_size, time)
                before = self._of_tars.endings.total()
                yield from images_in_tar(file, path, place, time, self._of_tars)
                if self._of_tars.endings.total() > before:
                    self._tars.add(path)
        except OSError as error:
            yield system_problem(path, "the archive cannot be read", error)


def _is_list(path: str) -> bool:
    """Whether a file is text with a list's ending, which a person may have named without --list."""
    if not path.lower().endswith(LIST_ENDINGS):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False  # decoding says why
    return bool(head) and b"\0" not in head and kind_of(head) == "list"


def _uncompressing(file: BinaryIO) -> str:
    """Return what uncompresses a file that is named .tar; "" where it is not compressed. Its place stays the begin."""
    begin = file.read(HEADER)
    file.seek(0)
    if begin[257:262] == b"ustar":  # a tar, whose first member's name may begin with BZh
        return ""
    return next((tool for mark, tool in COMPRESSED_BEGINS.items() if begin.startswith(mark)), "")


def _other_archive(path: str) -> str:
    """Return the reason for an archive that is not read here; "" for every other file."""
    ending = ending_of(path.rpartition("/")[2])
    if ending not in OTHER_ARCHIVES:
        return ""
    try:
        with open(path, "rb") as file:
            is_one = file.read(8).startswith(OTHER_ARCHIVES[ending])
    except OSError:
        return ""  # decoding says why
    return "an archive; unpack it, and name the folder" if is_one else ""
