"""Why a request gets no answer, as an HTTP status and a sentence."""

from __future__ import annotations

from typing import Final

from export.errors import ImageError, ImageStatus, ProjectError

# By the status of an image's row; "missing" and the like name files, which a request does not.
OF_IMAGES: Final[dict[ImageStatus, int]] = {
    "damaged": 422,
    "not_an_image": 415,
    "unsupported": 415,
    "too_large": 413,
}

BUG: Final = {"error": "The server failed; its log says more.", "status": "bug"}


class RequestError(ProjectError):
    """A request that gets no answer.

    Args:
        code: HTTP status, 4xx or 503.
        message: a sentence for the client, without a path of this machine.
        status: a word for programs: that of an image's row, or the kind of the error.
        retry_after: seconds after which the client may ask again. Defaults to None: asking again does not help.
        close: whether the connection is closed, since what follows on it is not understood. Defaults to False.
    """

    def __init__(
        self, code: int, message: str, status: str, retry_after: int | None = None, *, close: bool = False
    ) -> None:
        # JSON may name half a surrogate pair, which UTF-8 cannot say.
        super().__init__(message.encode(errors="backslashreplace").decode())
        self.code, self.status, self.retry_after, self.close = code, status, retry_after, close

    def headers(self) -> dict[str, str]:
        """Return the headers that go with it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"Connection": "close"} if self.close else {})

    def body(self) -> dict[str, str]:
        """Return what the client reads as JSON."""
        return {"error": str(self), "status": self.status}


def busy(message: str) -> RequestError:
    """Return the refusal of a server that has as much work as it takes."""
    return RequestError(503, message, "busy", retry_after=1)


def of_image(error: ImageError, which: str = "") -> RequestError:
    """Return what a client is told of an image that has no answer.

    Args:
        error: why.
        which: such as "files[3]", where a request has several. Defaults to "".
    """
    place = f" in {which}" if which else ""
    message = f"Expected an image{place} that can be decoded. Received: {error}."
    return RequestError(OF_IMAGES.get(error.status, 415), message, error.status)
