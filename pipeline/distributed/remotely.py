"""A call on a machine of the cluster, with what it logs and raises as if it were here."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from export.errors import ProjectError

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


def call_remotely(function: Callable[[_Argument], _Result], argument: _Argument, *, gpu: bool) -> _Result:
    """Return what a function gives on a machine of the cluster.

    Args:
        function: it is pickled, as are its argument and its result.
        argument: its only one.
        gpu: whether it needs a GPU.

    Raises:
        ProjectError: what it raises.
    """
    import ray

    task = ray.remote(num_cpus=0 if gpu else 1, num_gpus=1 if gpu else 0, max_retries=1)(Call.run)
    result, records, error = ray.get(task.remote(Call(partial(function, argument), Path.cwd())))
    for record in records:
        logging.getLogger(record.name).handle(record)
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def require_visible(*paths: Path) -> None:
    """Refuse to work where a file of the run is not there.

    Raises:
        ProjectError: one of them is not.
    """
    for path in paths:
        if not path.exists():
            raise ProjectError(
                f"Expected {path} on every machine of the cluster. Received: nothing there on {platform.node()}. "
                "Inputs, artifacts, output and the working folder have to be on a disk that all of them share."
            )


class Call:
    """A call to make elsewhere.

    Args:
        call: what is called.
        folder: the working folder there.
    """

    def __init__(self, call: Callable[[], Any], folder: Path) -> None:
        self._call, self._folder = call, folder

    def run(self) -> tuple[Any, list[logging.LogRecord], ProjectError | None]:
        """Return the result, what was logged, and the error."""
        kept = _Kept()
        packages = [logging.getLogger(name) for name in ("pipeline", "export")]
        for logger in packages:
            logger.addHandler(kept)
            logger.setLevel(logging.INFO)
        try:
            require_visible(self._folder)
            os.chdir(self._folder)
            return self._call(), kept.records, None
        except ProjectError as error:
            return None, kept.records, error
        finally:
            for logger in packages:
                logger.removeHandler(kept)


class _Kept(logging.Handler):
    """Keeps records, their texts made, so that they can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        self.records.append(record)
