"""Batch inference: items in, rows out, in constant memory.

Decoding, computing and the reader of the rows overlap (`pipeline.inference.overlap`). Batches are always the rows
[k * size, (k + 1) * size), and an image that cannot be decoded keeps its slot, because a backend may round an answer
differently at another place or in another number of images: so the answers of the others stay bit-identical, and a
resumed run gives those of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from export.errors import ImageError, RunnerError
from pipeline.data.image_files import FILE_BYTES, LARGEST_FILE
from pipeline.inference.embeddings import EmbeddingRunner
from pipeline.inference.items import Item, ItemReader
from pipeline.inference.overlap import Batch, Failure, Overlap, Picture
from pipeline.inference.pace import Pace
from pipeline.inference.rows import OK, Row, Rows
from pipeline.models.model_card import ModelCard
from pipeline.runners.base import Runner, Top
from pipeline.runners.cpus import usable_cpus

_LEAST_BUFFERS = 4  # one computes, one is ready, and a slow image does not stop the threads that are past it


@dataclass(frozen=True)
class Settings:
    """How a run classifies.

    Attributes:
        batch_size: images per call; see `batch_size_of`.
        top_k: classes per row, at most all.
        threshold: classes with a smaller probability are left out of a row. Defaults to 0: none is.
        decode_threads: threads that decode. Defaults to 0: as many as there are CPUs for this process.
        keep_damaged: whether a damaged image is answered where its format allows it. Defaults to False.
        largest_file: bytes of an image file. Defaults to `LARGEST_FILE`.
        embeddings: whether rows carry the features of an `EmbeddingRunner`. Defaults to False.
    """

    batch_size: int
    top_k: int
    threshold: float = 0.0
    decode_threads: int = 0
    keep_damaged: bool = False
    largest_file: int = LARGEST_FILE
    embeddings: bool = False

    @property
    def threads(self) -> int:
        """Number of threads that decode."""
        return self.decode_threads or usable_cpus()


class _Answers(NamedTuple):
    top: Top | None  # None: no image of the batch has one
    features: np.ndarray | None


def batch_size_of(runner: Runner, settings: Settings) -> int:
    """Return the number of images per call: the settings', at most what an open runner takes at once."""
    return min(settings.batch_size, runner.max_batch)


def classify(
    items: Iterable[Item], reader: ItemReader, runner: Runner, card: ModelCard, settings: Settings, pace: Pace
) -> Generator[Rows]:
    """Yield the rows of each batch, in the items' order.

    Close the generator to end early; it then waits for the images and the batch in work.

    Args:
        items: with ascending numbers; a jump begins another batch. They are taken as they are needed.
        reader: gives their content to several threads at once.
        runner: an open runner of the model.
        card: the model's card: classes, and how images are decoded.
        settings: of the run.
        pace: gets the busy times; those between two batches' rows count as writing.

    Raises:
        ModelError: the runner's model is not the card's.
        RunnerError: the runner failed, or gives no features although they are wanted.
    """
    card.check_runner(runner, "the model")
    if settings.embeddings and not isinstance(runner, EmbeddingRunner):
        raise RunnerError(
            f"Expected an ONNX file, whose graph has the features. Received: a model of {runner.backend}. "
            "--embeddings needs the ONNX file: --backend onnxruntime."
        )
    k = min(settings.top_k, len(card.classes))

    def decode(item: Item, slot: np.ndarray) -> Picture | Failure:
        try:
            return _decode_into(slot, item, reader, card, settings)
        except ImageError as error:
            failure = Failure(error.status, str(error), error.size)
        except MemoryError:
            failure = Failure("too_large", "more than fits into the memory that is left")
        slot.fill(0)
        return failure

    def compute(batch: Batch) -> _Answers:
        pixels = batch.pixels[: len(batch.items)]
        if not any(isinstance(outcome, Picture) for outcome in batch.outcomes):
            return _Answers(None, None)
        if isinstance(runner, EmbeddingRunner) and settings.embeddings:
            return _Answers(*runner.top_and_features(pixels, k))
        return _Answers(runner.top(pixels, k), None)

    features = runner.features if settings.embeddings and isinstance(runner, EmbeddingRunner) else 0
    buffers = _buffers(runner, card, batch_size_of(runner, settings), settings.threads)
    pace.start()
    try:
        with Overlap(items, decode, compute, buffers, settings.threads, pace) as overlap:
            for batch, answers in overlap.answers():
                began = pace.clock()
                rows = _rows(batch, answers.top, card.classes, settings.threshold)
                embeddings = _embeddings(batch, answers.features, features) if settings.embeddings else None
                yield Rows(batch.items[0].row, rows, embeddings)
                pace.add("write", pace.clock() - began)
                pace.add_images(len(rows))
    finally:
        pace.stop()


def _decode_into(slot: np.ndarray, item: Item, reader: ItemReader, card: ModelCard, settings: Settings) -> Picture:
    if item.kind == "problem":
        raise ImageError(item.place, item.status)
    largest = settings.largest_file
    # Of a tar's members the size is listed; rows of a Parquet file are in its reader's memory already.
    with FILE_BYTES.hold(item.size if item.kind == "tar" and item.size <= largest else 0):
        content = reader.content(item, largest)
        decoded = card.decode.decode(content, keep_damaged=settings.keep_damaged, largest_file=largest)
    slot[:] = decoded.pixels
    return Picture(decoded.width, decoded.height, decoded.damage)


def _buffers(runner: Runner, card: ModelCard, size: int, threads: int) -> list[np.ndarray]:
    """Allocate batches, page-locked where the runner uploads from such memory without a copy."""
    number = max(_LEAST_BUFFERS, 2 + math.ceil(2 * threads / size))
    shape = (number * size, *card.size, 3)
    pinned = getattr(runner, "pinned_pixels", None)
    pixels = np.empty(shape, np.uint8) if pinned is None else pinned(number * size)
    return list(pixels.reshape(number, size, *shape[1:]))


def _rows(batch: Batch, top: Top | None, classes: tuple[str, ...], threshold: float) -> list[Row]:
    slots = [((), ())] * len(batch.items) if top is None else zip(top.probabilities.tolist(), top.classes.tolist())
    rows = []
    for item, outcome, (probabilities, indices) in zip(batch.items, batch.outcomes, slots):
        if not isinstance(outcome, Picture):
            rows.append(Row(item.path, outcome.status, (), (), outcome.reason, *(outcome.size or ())))
            continue
        # A probability that is not a number is shown: it is below no threshold.
        best = [(classes[index], p) for p, index in zip(probabilities, indices) if not p < threshold]
        rows.append(
            Row(
                item.path,
                "damaged" if outcome.damage else OK,
                tuple(name for name, _ in best),
                tuple(p for _, p in best),
                outcome.damage,
                outcome.width,
                outcome.height,
            )
        )
    return rows


def _embeddings(batch: Batch, features: np.ndarray | None, number: int) -> np.ndarray:
    """Return the features of each slot, float32 (rows, number), not a number where there is no answer."""
    if features is None:
        return np.full((len(batch.items), number), np.nan, np.float32)
    failed = [isinstance(outcome, Failure) for outcome in batch.outcomes]
    return np.where(np.array(failed)[:, None], np.float32(np.nan), features)
