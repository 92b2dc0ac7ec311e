"""Images sorted by their answers: a folder a class, with links to the images."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from export.errors import ProjectError
from export.files import commit_folder, recover_folder, temporary_folder
from export.records import read_record
from export.words import count
from pipeline.artifacts.files import write_json
from pipeline.inference.items import Item
from pipeline.inference.output.class_folders import UNSURE, folder_names, short_hash, shortened
from pipeline.inference.output.join import read_rows
from pipeline.inference.output.places import foreign
from pipeline.inference.output.spec import OutputSpec
from pipeline.inference.rows import OK

MARKER: Final = ".sorted-by-infer.json"
_MODULO: Final = 2**128


@dataclass(frozen=True)
class SortRecord:
    """What lies in a folder of sorted images.

    Attributes:
        links: how many.
        digest: of all of them, independent of their order: where each is and leads.
        schema: Version of this file format.
    """

    links: int
    digest: str
    schema: int = 1


class Sorted(NamedTuple):
    """What became of the rows.

    Attributes:
        links: images that have one, the unsure ones included.
        unsure: images in the folder ``_unsure``.
        left_out: rows whose status is not "ok".
        too_long: images whose absolute path is longer than a link may be.
    """

    links: int
    unsure: int
    left_out: int
    too_long: int


def refuse_members(items: Iterable[Item]) -> None:
    """Refuse inputs that no link can lead to, before the run.

    Raises:
        ProjectError: One of them is in an archive, or came by standard input.
    """
    for item in items:
        if item.kind in ("tar", "parquet") or (item.kind == "file" and item.path == "-"):
            place = "of standard input" if item.path == "-" else f"in {item.place}"
            raise ProjectError(
                f"Expected images that are files, which --sort-into links to. Received: one {place}. Unpack it, or "
                "leave out --sort-into."
            )


def check_sort_folder(folder: Path) -> None:
    """Refuse a folder for sorted images that holds anything but what an earlier run put there.

    Raises:
        ProjectError: It is a link, a file, of another user, or holds something else.
    """
    try:
        received = foreign(folder)
    except FileNotFoundError:
        return
    received = received or _strange(folder)
    if received:
        raise ProjectError(
            "Expected a new folder after --sort-into, or one with the links of an earlier run alone. Received: "
            f"{folder}, {received}. Name another, or move it away."
        )


def sort_into(folder: Path, output: Path, spec: OutputSpec, classes: Sequence[str]) -> Sorted:
    """Make a folder of links to the images of a final file, by class; it is there as a whole, or as it was before.

    The links are ``<class>/<name>`` and lead to absolute paths; of two images with one name the second one gets a few
    digits of a hash. Images whose row has no class, as none reached the run's threshold, go to ``_unsure``; those whose
    status is not "ok" get no link. It is made anew beside the folder and takes its place, so that in a
    folder of an earlier run no link stays that no longer fits.

    Args:
        folder: the folder.
        output: the final file.
        spec: what the file was written by.
        classes: of the model, in their order, which decides names that are alike.

    Raises:
        ProjectError: See `check_sort_folder`.
    """
    recover_folder(folder)
    check_sort_folder(folder)
    with temporary_folder(folder) as fresh:
        done = _link(fresh, read_rows(output, spec), folder_names(classes))
        write_json(fresh / MARKER, _record(fresh))
        if not folder.is_dir() or _is_other(folder, fresh):
            commit_folder(fresh, folder)
    return done


def _link(fresh: Path, rows: Iterator[dict[str, Any]], names: dict[str, str]) -> Sorted:
    here = os.getcwd()
    links = unsure = left_out = too_long = 0
    for row in rows:
        if row["status"] != OK:
            left_out += 1
            continue
        is_unsure = "class" not in row
        place = fresh / (UNSURE if is_unsure else names[row["class"]])
        place.mkdir(exist_ok=True)
        try:
            _link_one(place, os.path.join(here, row["path"]))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            too_long += 1
        else:
            links += 1
            unsure += is_unsure
    return Sorted(links, unsure, left_out, too_long)


def _link_one(place: Path, path: str) -> None:
    name = os.path.basename(path)
    stem, ending = os.path.splitext(name)
    for candidate in (name, *(shortened(stem, ending, short_hash(path, digits)) for digits in (8, 64))):
        try:
            os.symlink(path, place / candidate)
        except FileExistsError:
            continue
        return
    raise ProjectError(f"Expected each image once. Received: {path} twice.")


def _strange(folder: Path) -> str:
    """Return what in a folder is not of an earlier run, "" where all is."""
    names = os.listdir(folder)
    if not names:
        return ""
    if MARKER not in names or (folder / MARKER).is_symlink():
        return "which is not empty"
    try:
        there = _record(folder)
    except NotADirectoryError as error:
        return f"where {error.filename} is no link"
    made = read_record(SortRecord, folder / MARKER, remedy="Name another folder.", what="record of sorted images")
    if there != made:
        return f"whose links were changed ({there.links:,} of {count(made.links, 'link')})"
    return ""


def _record(folder: Path) -> SortRecord:
    """Return the record of the links that are in a folder.

    Raises:
        NotADirectoryError: Something in it is no folder of links.
    """
    links = total = 0
    for group in _entries(folder):
        if group.name == MARKER:
            continue
        if not group.is_dir(follow_symlinks=False):
            raise NotADirectoryError(errno.ENOTDIR, "", group.path)
        for link in _entries(Path(group.path)):
            if not link.is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, "", link.path)
            text = "\0".join((group.name, link.name, os.readlink(link.path)))
            total += int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:16], "big")
            links += 1
    return SortRecord(links, f"{total % _MODULO:032x}")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from entries


def _is_other(folder: Path, fresh: Path) -> bool:
    places = [folder / MARKER, fresh / MARKER]
    return not places[0].exists() or places[0].read_bytes() != places[1].read_bytes()
