"""Errors of the project: one root, and what went wrong inside a library in one line.

The one base error of the project.

Errors of the pipeline. Every message says what was expected, what was received and what to do.
"""

import re


class ProjectError(Exception):
    """Something a person can mend: bad input, a missing file, a missing device, a model that cannot be transformed.

    The message says what was expected, what was received and what to do. The command exits with status 2.
    """


_AROUND = re.compile(
    r"Exception encountered|Graph execution error|Detected at node|Arguments received|<stack traces|\s*$"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def cause(error: BaseException) -> str:
    """What went wrong inside Keras or TensorFlow, in one line; they put a layer's settings or a traceback around it."""
    text = _COLOUR.sub("", str(error)).strip() or type(error).__name__
    text = text.rpartition("Exception encountered:")[2].strip() or text
    lines = text.splitlines()
    return next((line for line in lines if not _AROUND.match(line)), lines[0]).strip()[:300]


def add_note(error: BaseException, text: str) -> None:
    """Add to an error that passes by what is left, for the command to say: ``BaseException.add_note`` of Python 3.11.

    Python 3.10 does not print notes in a traceback, so who reports an error says its ``notes``.
    """
    vars(error).setdefault("__notes__", []).append(text)


def notes(error: BaseException) -> tuple[str, ...]:
    """What ``add_note`` added, in that order."""
    return tuple(getattr(error, "__notes__", ()))


class RecipeError(ProjectError):
    """A recipe or an override that is not valid."""


class DataError(ProjectError):
    """Images or labels that cannot be used."""


class ImageError(DataError):
    """An image that cannot be read or decoded. The message holds the reason, not the path."""


class ModelError(ProjectError):
    """A Keras model that cannot be built, loaded or deployed."""


class RunnerError(ProjectError):
    """A backend could not be opened or failed while it ran."""


class DeviceUnavailableError(RunnerError):
    """The device or its driver does not exist on this machine: nothing was run, as opposed to "it ran and failed".

    Attributes:
        reason: what is missing, in a few words, for tables.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class OutOfMemoryError(RunnerError):
    """The GPU has not the memory that was asked for."""
