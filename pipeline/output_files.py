"""Files that a command line names to write to, looked at before any work is done for them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import PipelineError


def check_output(path: Path, option: str, example: str, endings: Sequence[str] = ()) -> None:
    """Refuse a path that no file can be written to. Folders that do not exist are made when it is written.

    Args:
        path: what was given.
        option: as it is typed, such as "-o".
        example: a name of such a file.
        endings: of the name, of which one must be there. Defaults to (): any.

    Raises:
        PipelineError: a folder, standard output, a device, another ending, or a place where nothing can be written.
    """
    if str(path) == "-":
        raise PipelineError(
            f"Expected a file after {option}, such as {example}. Received: -; nothing of this goes to standard output."
        )
    if path.is_dir():
        raise PipelineError(
            f"Expected a file after {option}, such as {path / example}. Received: {path}, which is a folder."
        )
    if endings and path.suffix.lower() not in endings:
        shorter = path.with_suffix("")  # of my.tar.gz my.tar, which is no my.tar.tar
        fit = shorter if shorter.suffix.lower() in endings else path.with_suffix(endings[0])
        wanted = f"ends in {' or '.join(endings)} after {option}, such as {fit}"
        raise PipelineError(f"Expected a file that {wanted}. Received: {path}.")
    if path.exists() and not path.is_file():
        raise PipelineError(
            f"Expected a file after {option}, such as {example}. Received: {path}, which is a device or a pipe."
        )
    check_folder(path.parent, option, path)


def check_folder(folder: Path, option: str, path: Path | None = None) -> None:
    """Refuse a folder that is none, or in which (or in the nearest one above that exists) nothing can be written.

    Args:
        folder: it need not exist yet.
        option: as it is typed.
        path: what is to be written there, as it was given. Defaults to None: the folder itself was given.

    Raises:
        PipelineError: with the reason of the system.
    """
    given = folder if path is None else path
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise PipelineError(
            f"Expected a place in a folder after {option}. Received: {given}, where {there} is no folder."
        )
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise PipelineError(
            f"Expected a place that can be written after {option}. Received: {given}: {error.strerror or error} "
            f"(in {there}). Name another."
        ) from error
