"""Refuses, before a run, outputs that would replace an input or lie where links are to be."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from export.errors import ProjectError
from pipeline.inference.output.sort import check_sort_folder
from pipeline.inference.request import Request


def refuse_inputs_as_outputs(request: Request, paths: Iterable[str]) -> None:
    """Refuse to replace what is read.

    Raises:
        ProjectError: a file that is written is one of the paths.
    """
    outputs = [(o, file) for o, file in (("-o", request.output), ("--embeddings", request.embeddings)) if file]
    for path, (option, file) in itertools.product(paths, outputs):
        with contextlib.suppress(OSError, ValueError):  # one of them is not there, or no path
            if os.path.samefile(path, file):
                raise ProjectError(
                    f"Expected another file than the inputs after {option}. Received: {file}, which is one of them and "
                    "would be replaced. Name another."
                )


def check_links_folder(folder: Path, inputs: Sequence[str]) -> None:
    """Refuse a folder whose links the next run would classify, or that is not one of ours.

    Raises:
        ProjectError: it is one of the inputs or below one, or see `check_sort_folder`.
    """
    check_sort_folder(folder)
    place = folder.absolute()
    for name in inputs:
        if Path(name).is_dir() and place.is_relative_to(Path(name).absolute()):
            raise ProjectError(
                f"Expected a folder outside of what is classified after --sort-into. Received: {folder}, which is in "
                f"{name}: the next run would take its links for images. Name another."
            )


def refuse_outputs_within(folder: Path, outputs: Mapping[str, Path | None]) -> None:
    """Refuse a folder for links that would not hold links alone, before the run and not at its end.

    Raises:
        ProjectError: an output is to be written into it, or it is the working directory or one above.
    """
    place = Path(os.path.abspath(folder))
    if Path.cwd().is_relative_to(place):
        raise ProjectError(
            f"Expected the name of a folder after --sort-into, which is made anew. Received: {folder}, which is the "
            "working directory or above it. Name one in it."
        )
    for option, output in outputs.items():
        if output is not None and Path(os.path.abspath(output)).is_relative_to(place):
            raise ProjectError(
                f"Expected a folder for links alone after --sort-into. Received: {folder}, into which "
                f"{option} {output} would be written. Name another."
            )
