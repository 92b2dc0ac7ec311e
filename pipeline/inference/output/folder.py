"""Takes the folder of a run, made or found, and removes it; what is not ours is refused by its name."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from export.errors import ProjectError
from export.files import remove_leftovers, sync, temporaries_of
from pipeline.inference.output.layout import CHECKPOINT, INPUTS, LOCK, PART_NAME, PARTS, RECORD, SHARD_NAME
from pipeline.inference.output.places import NoLocksError, foreign, is_at, lock, open_inside, write_at

_ENDING: Final = ".run"
_TEMPORARY: Final = re.compile(rf"\.{re.escape(RECORD)}\.tmp-.*")
_OF_RUN: Final = re.compile(rf"{LOCK}|{re.escape(RECORD)}|{SHARD_NAME.pattern}|{_TEMPORARY.pattern}")
_INPUT: Final = re.compile(r"plan|stdin-[0-9a-f]{32}|\.(?:plan|stdin)\.tmp-.*")  # what lists the inputs makes these
_INSIDE: Final = {INPUTS: _INPUT, PARTS: PART_NAME, CHECKPOINT: PART_NAME}  # the names in each folder of a run
_ATTEMPTS: Final = 1000  # a run that ends removes the folder; another attempt makes it again


def run_folder(output: Path) -> Path:
    """Return the folder of the run that writes an output."""
    return output.with_name(output.name + _ENDING)


@contextlib.contextmanager
def holding(output: Path, option: str) -> Iterator[None]:
    """Keep other runs from a file or folder that is written beside the rows, by a run's folder of its own.

    The rows of a stopped run that are in that folder stay.

    Args:
        output: the file or folder.
        option: that names it, for messages.

    Raises:
        ProjectError: Another process holds it, or what is there is not ours.
    """
    folder = run_folder(output)
    descriptor = take_folder(folder, output, option)
    try:
        yield
    finally:
        _give_back(folder, descriptor)


def take_folder(folder: Path, output: Path, option: str = "-o") -> int:
    """Make the folder of a run, or open an earlier run's, and lock it.

    Args:
        folder: of the run.
        output: what the run writes, for messages.
        option: that names the output, for messages. Defaults to "-o".

    Returns:
        int: descriptor of the lock; closing it gives the folder back.

    Raises:
        ProjectError: Another process holds it, or what is there is not ours.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    is_made = False
    for _ in range(_ATTEMPTS):
        try:
            folder.mkdir(mode=0o700)  # fails on whatever is there, a link too
            is_made = True
            with contextlib.suppress(OSError):  # some file systems sync no folders
                sync(folder.parent)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                _refuse_foreign(folder, option)
        with contextlib.suppress(FileNotFoundError):
            descriptor = open_inside(folder / LOCK, os.O_RDWR | os.O_CREAT)
            try:
                if not lock(descriptor, folder / LOCK):
                    raise ProjectError(
                        f"{output} is being written by {_holder(descriptor)}. Wait for it, or name another output with "
                        f"{option}."
                    )
                if is_at(descriptor, folder / LOCK):
                    write_at(
                        descriptor, 0, f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode()
                    )
                    remove_leftovers(temporaries_of(folder / RECORD))
                    return descriptor
            except NoLocksError:
                if is_made:
                    remove_folder(folder, descriptor)
                else:
                    os.close(descriptor)
                raise
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    raise ProjectError(f"Expected a folder at {folder}. Received: one that others make and remove all the time.")


def remove_folder(folder: Path, descriptor: int) -> None:
    """Remove the folder of a run and give back its lock.

    The record goes first, so that what is left of a run is never continued; the lock last, as it says that the rest is
    ours. What another run has begun there meanwhile stays.

    Args:
        folder: of the run.
        descriptor: of its lock.
    """
    try:
        (folder / RECORD).unlink(missing_ok=True)
        for name in os.listdir(folder):
            if SHARD_NAME.fullmatch(name) or _TEMPORARY.fullmatch(name):
                (folder / name).unlink(missing_ok=True)
        remove_inside(folder, *_INSIDE)
        if os.name != "nt":
            (folder / LOCK).unlink()
    finally:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        if os.name == "nt":  # it removes no open file
            (folder / LOCK).unlink()
        folder.rmdir()


def remove_inside(folder: Path, *names: str) -> None:
    """Remove folders that a run has made in its folder; whatever else is in one stays, and that folder with it.

    Args:
        folder: of the run.
        names: `INPUTS`, `PARTS` or `CHECKPOINT`.

    Raises:
        OSError: There is something else.
    """
    for inside in names:
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(folder / inside):
                if _INSIDE[inside].fullmatch(name):
                    (folder / inside / name).unlink(missing_ok=True)
            (folder / inside).rmdir()


def is_run_folder(path: str) -> bool:
    """Return whether a run has made a folder, by its name and what is in it; False where that cannot be seen."""
    try:
        is_named = path.endswith(_ENDING) and os.path.lexists(os.path.join(path, LOCK))
        return is_named and not foreign(Path(path)) and not _strange(Path(path))
    except OSError:
        return False


def _give_back(folder: Path, descriptor: int) -> None:
    """Give back a lock, and remove the folder where there is nothing else in it, as far as that is possible."""
    try:
        is_empty = os.listdir(folder) == [LOCK]
    except OSError:  # somebody removed it
        is_empty = False
    if not is_empty:
        os.close(descriptor)
        return
    with contextlib.suppress(OSError):
        remove_folder(folder, descriptor)


def _refuse_foreign(folder: Path, option: str) -> None:
    received = foreign(folder)
    if not received:
        received = _strange(folder)
    if received:
        raise ProjectError(
            f"Expected no {folder}, or the folder of an earlier run there. Received: {received}. Move it away, or name "
            f"another output with {option}."
        )


def _strange(folder: Path) -> str:
    """Return why a folder is none that a run made, "" where it is one; an empty one may be."""
    with os.scandir(folder) as entries:
        there = {entry.name: entry for entry in entries}
    strange = [name for name, entry in there.items() if name not in _INSIDE and not _is_file(entry, _OF_RUN)]
    for name in _INSIDE.keys() & there.keys():
        if not there[name].is_dir(follow_symlinks=False):
            strange.append(name)
            continue
        with os.scandir(there[name].path) as entries:
            strange += [f"{name}/{entry.name}" for entry in entries if not _is_file(entry, _INSIDE[name])]
    if strange:
        return f"a folder with {min(strange)!r}, which no run makes"
    return "a folder that no run made" if there and LOCK not in there else ""


def _is_file(entry: os.DirEntry[str], names: re.Pattern[str]) -> bool:
    return names.fullmatch(entry.name) is not None and entry.is_file(follow_symlinks=False)


def _holder(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 100).partition(b"\n")[0].decode(errors="replace") or "another process"
