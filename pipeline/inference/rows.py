"""The rows of a run: a status, the best classes and their probabilities, or the reason why there are none."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

import numpy as np

from export.errors import ImageStatus

OK: Final = "ok"
Status = Literal["ok"] | ImageStatus
STATUSES: Final[tuple[str, ...]] = (OK, *get_args(ImageStatus))


class Row(NamedTuple):
    """The answer to one input.

    Attributes:
        path: see `pipeline.inference.items.Item`.
        status: "ok", or why there is no answer. A "damaged" image has one where damaged ones are kept.
        classes: names of the best classes, best first; none without an answer.
        probabilities: theirs, 0 to 1.
        error: the reason; "" where the status is "ok".
        width: of the upright picture in pixels. Defaults to None: unknown.
        height: likewise.
    """

    path: str
    status: Status
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""
    width: int | None = None
    height: int | None = None


class Rows(NamedTuple):
    """The rows of one batch.

    Attributes:
        first: number of the first one, see `pipeline.inference.items.Item`.
        rows: consecutive ones.
        embeddings: float32, (rows, features), NaN where there is no answer. Defaults to None: none were asked for.
    """

    first: int
    rows: list[Row]
    embeddings: np.ndarray | None = None


def columns(top_k: int) -> list[str]:
    """Return ``path, status, class, probability, class_2, probability_2, ..., error, width, height``."""
    further = [name for rank in range(2, top_k + 1) for name in (f"class_{rank}", f"probability_{rank}")]
    return ["path", "status", "class", "probability", *further, "error", "width", "height"]
