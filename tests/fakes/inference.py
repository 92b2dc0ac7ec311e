"""Images as texts, a decoder that reads them, and a runner whose answers depend on everything they may depend on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.errors import ImageError
from export.preprocessing import PreprocessingSpec
from pipeline.data.decode import Decoded, DecodeSpec
from pipeline.inference.items import Item
from pipeline.models.model_card import ModelCard
from pipeline.runners.base import Outputs, Top

CLASSES = ("zero", "one", "two", "three", "four")


@dataclass(frozen=True)
class TextDecode(DecodeSpec):
    """ "3": an image full of 3; "~3": a damaged one; "slow": a slow one of 2; anything else: an error of that name."""

    def decode(
        self, source: Path | str | bytes | np.ndarray, *, keep_damaged: bool = False, largest_file: int = 2**29
    ) -> Decoded:
        assert isinstance(source, bytes)
        text = source.decode()
        if text == "memory":
            raise MemoryError
        if text == "slow":
            time.sleep(0.1)
            text = "2"
        if text == "bug":
            raise ZeroDivisionError("a bug")
        if len(source) > largest_file:
            raise ImageError("too many bytes", "too_large")
        if text == "missing":
            raise ImageError("No such file or directory", "missing")
        if text.startswith("~") and not keep_damaged:
            raise ImageError("cut short", "damaged", (7, 5))
        value = int(text.removeprefix("~"))
        return Decoded(np.full((*self.size, 3), value, np.uint8), 7, 5, "cut short" if text.startswith("~") else "")


CARD = ModelCard(CLASSES, PreprocessingSpec.from_mode("unit"), TextDecode((4, 4), "stretch"), "softmax")


class TextReader:
    """The content of an item is its place."""

    def content(self, item: Item, largest: int) -> bytes:
        return item.place.encode()


def items(kinds: Iterable[int | str], start: int = 0) -> Iterator[Item]:
    """An item of each kind, see `TextDecode`; "!reason" is a problem."""
    for row, kind in enumerate(kinds, start):
        text = str(kind)
        if text.startswith("!"):
            yield Item(row, f"{row}.jpg", "problem", text[1:], status="not_a_file")
        else:
            yield Item(row, f"{row}.jpg", "file", text)


class TextRunner:
    """Its best class is the image's value; the probability tells slot and number of images of the batch.

    Args:
        max_batch: see `Runner`.
        compute: called with the values of each batch.
    """

    backend, precision, graph_top_k, classes, metadata = "onnxruntime", "fp32", 0, len(CLASSES), None

    def __init__(self, max_batch: int = 100, compute: Callable[[list[int]], object] = lambda values: None) -> None:
        self.max_batch = max_batch
        self.compute = compute
        self.batches: list[list[int]] = []

    def __enter__(self) -> TextRunner:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def infer(self, pixels: np.ndarray) -> Outputs:
        raise NotImplementedError

    def top(self, pixels: np.ndarray, k: int) -> Top:
        values = pixels[:, 0, 0, 0].astype(np.int32)
        assert (pixels == values[:, None, None, None]).all()
        self.batches.append(values.tolist())
        self.compute(values.tolist())
        ranks = np.arange(k)
        place = np.arange(len(values)) / 1000 + len(values) / 100000
        best = 0.9 - values[:, None] / 100 - ranks[None] / 10 - place[:, None]
        return Top(best.astype(np.float32), ((values[:, None] + ranks[None]) % len(CLASSES)).astype(np.int32))
