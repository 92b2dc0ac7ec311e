"""Takes the folder of a run, made or found, and removes it; what is not ours is refused by its name."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import Final

from export.errors import ProjectError
from export.files import remove_leftovers, sync, temporaries_of
from pipeline.inference.output.layout import INPUTS, LOCK, RECORD, SHARD_NAME
from pipeline.inference.output.places import foreign, is_at, lock, open_inside, write_at

_TEMPORARY: Final = re.compile(rf"\.{re.escape(RECORD)}\.tmp-.*")
_INSTEAD: Final = "Wait for it, or name another output with -o."
_ATTEMPTS: Final = 1000  # a run that ends removes the folder; another attempt makes it again


def take_folder(folder: Path, output: Path) -> int:
    """Make the folder of a run, or open an earlier run's, and lock it.

    Args:
        folder: of the run.
        output: what the run writes, for messages.

    Returns:
        int: descriptor of the lock; closing it gives the folder back.

    Raises:
        ProjectError: Another process holds it, or what is there is not ours.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        try:
            folder.mkdir(mode=0o700)  # fails on whatever is there, a link too
            with contextlib.suppress(OSError):  # some file systems sync no folders
                sync(folder.parent)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                _refuse_foreign(folder)
        with contextlib.suppress(FileNotFoundError):
            descriptor = open_inside(folder / LOCK, os.O_RDWR | os.O_CREAT)
            try:
                if not lock(descriptor):
                    raise ProjectError(f"{output} is being written by {_holder(descriptor)}. {_INSTEAD}")
                if is_at(descriptor, folder / LOCK):
                    write_at(
                        descriptor, 0, f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode()
                    )
                    remove_leftovers(temporaries_of(folder / RECORD))
                    return descriptor
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
        if (folder / INPUTS).exists():
            shutil.rmtree(folder / INPUTS)
        if os.name != "nt":
            (folder / LOCK).unlink()
    finally:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        if os.name == "nt":  # it removes no open file
            (folder / LOCK).unlink()
        folder.rmdir()


def _refuse_foreign(folder: Path) -> None:
    received = foreign(folder)
    if not received:
        with os.scandir(folder) as entries:
            strange = sorted(entry.name for entry in entries if not _is_ours(entry))
            names = os.listdir(folder)
        if strange:
            received = f"a folder with {strange[0]!r}, which no run makes"
        elif names and LOCK not in names:
            received = "a folder that no run made"
    if received:
        raise ProjectError(
            f"Expected no {folder}, or the folder of an earlier run there. Received: {received}. Move it away, or name "
            "another output with -o."
        )


def _is_ours(entry: os.DirEntry[str]) -> bool:
    if entry.name == INPUTS:
        return entry.is_dir(follow_symlinks=False)
    is_named = entry.name in (LOCK, RECORD) or SHARD_NAME.fullmatch(entry.name) or _TEMPORARY.fullmatch(entry.name)
    return bool(is_named) and entry.is_file(follow_symlinks=False)


def _holder(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 100).partition(b"\n")[0].decode(errors="replace") or "another process"
