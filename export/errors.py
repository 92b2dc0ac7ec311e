"""The errors of the project. Every message says what was expected, what was received and what to do."""

import re
from typing import Literal

# Why an image has no answer; `ImageError.status`.
ImageStatus = Literal[
    "damaged",  # an image whose content is not whole
    "unreadable",  # the system refuses to open or read it
    "not_an_image",  # readable, and no image
    "unsupported",  # an image of a kind that is not decoded, as 32-bit values
    "too_large",  # more bytes or pixels than are allowed, or than fit into memory
    "missing",  # nothing is there
    "not_a_file",  # a folder, pipe, socket or device
]


class ProjectError(Exception):
    """An error that the user can fix: bad input, a missing file or device, a model that cannot be converted.

    The base class of all errors of the project. The message says what was expected, what was received and what to do.
    The command exits with status 2.
    """


_AROUND = re.compile(
    r"Exception encountered|Graph execution error|Detected at node|Arguments received|<stack traces|\s*$"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def cause(error: BaseException) -> str:
    """Return the reason in an error of a library in one line of at most 300 characters.

    Keras and TensorFlow put a layer's settings or a traceback around the reason.
    """
    text = _COLOUR.sub("", str(error)).strip() or type(error).__name__
    text = text.rpartition("Exception encountered:")[2].strip() or text
    lines = text.splitlines()
    return next((line for line in lines if not _AROUND.match(line)), lines[0]).strip()[:300]


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an error, as ``BaseException.add_note`` of Python 3.11 does; `notes` returns it.

    Python 3.10 does not print notes in a traceback, so the code that reports an error prints its `notes`.
    """
    vars(error).setdefault("__notes__", []).append(text)


def notes(error: BaseException) -> tuple[str, ...]:
    """Return the notes that `add_note` added to an error, in that order."""
    return tuple(getattr(error, "__notes__", ()))


class RecipeError(ProjectError):
    """A recipe or an override that is not valid."""


class DataError(ProjectError):
    """Images or labels that cannot be used."""


class ImageError(DataError):
    """An image that cannot be read or decoded. The message holds the reason, not the path.

    Args:
        message: The reason.
        status: Its kind. Defaults to "damaged".
        size: Width and height of the picture in pixels, where its header states them. Defaults to None.
    """

    def __init__(self, message: str, status: ImageStatus = "damaged", size: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.status: ImageStatus = status
        self.size = size


class ModelError(ProjectError):
    """A Keras model that cannot be built, loaded or deployed."""


class ParityError(ProjectError, AssertionError):
    """Two classifiers that do not answer alike; an AssertionError too, so that a test fails and is no error."""


class RunnerError(ProjectError):
    """A backend could not be opened or failed while it ran."""


class UnfitError(RunnerError):
    """A file is no classifier of the images and classes in question, so that there is nothing to compare."""


class DeviceUnavailableError(RunnerError):
    """The device or its driver does not exist on this machine, so nothing was run.

    Args:
        message: The whole message.
        reason: What is missing, in a few words, for tables. Defaults to the message.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class OutOfMemoryError(RunnerError):
    """The GPU has too little memory for an allocation."""
