"""What the routes ask: bytes of an image file, or pixels, to the model's answer."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from export.errors import ImageError
from pipeline.data.decode import Decoded
from pipeline.inference.deployment import BatchClassifier, Deployment
from pipeline.runners.base import Outputs
from pipeline.server.batching import Batcher, Computed
from pipeline.server.errors import busy, of_image
from pipeline.server.metrics import Metrics


@dataclass(frozen=True)
class Limits:
    """How much a server takes.

    Attributes:
        max_batch: images that are computed at once, at most; the file that answers may take fewer.
        max_delay: seconds that an image waits for others that are being decoded, at most.
        queue: images that are decoded or wait, at most; more are refused.
        upload: bytes of a request's body.
        uploads: bytes of all bodies that are in memory at a time.
        json: bytes of JSON in a request of the Open Inference Protocol.
        body_seconds: that a body may take to arrive.
        header_seconds: likewise the headers.
        header_bytes: of all headers.
        connections: open ones.
        stop_seconds: that requests in flight get when the server stops.
    """

    max_batch: int = 32
    max_delay: float = 0.002
    queue: int = 256
    upload: int = 32 << 20
    uploads: int = 512 << 20
    json: int = 8 << 20
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    header_bytes: int = 64 << 10
    connections: int = 800
    stop_seconds: float = 20.0


class Seen(NamedTuple):
    """The answer to one image file."""

    decoded: Decoded
    computed: Computed
    decode_seconds: float


class Service:
    """An async context manager that answers with a deployment's file.

    Args:
        deployment: what answers.
        limits: how much it takes.
    """

    def __init__(self, deployment: Deployment, limits: Limits) -> None:
        self.deployment, self.limits = deployment, limits
        self.draining = False  # the server stops
        self._is_open = False
        self.metrics = Metrics(deployment, self._load)
        self._decoding = 0  # images
        self._block = AsyncExitStack()
        self._batcher: Batcher
        self._decoders: ThreadPoolExecutor
        self._turns: asyncio.Semaphore  # free ones of them

    async def __aenter__(self) -> Service:
        loop = asyncio.get_running_loop()
        thread = self._block.enter_context(ThreadPoolExecutor(1, "compute"))
        classifier = self.deployment.open()
        await loop.run_in_executor(thread, _open, classifier, self.limits.max_batch)
        self._block.push_async_callback(loop.run_in_executor, thread, classifier.__exit__, None, None, None)
        threads = self.deployment.settings.threads
        self._decoders, self._turns = ThreadPoolExecutor(threads, "decode"), asyncio.Semaphore(threads)
        self._block.enter_context(self._decoders)
        self._batcher = await self._block.enter_async_context(
            Batcher(
                classifier.runner.infer,
                thread,
                max_batch=min(self.limits.max_batch, classifier.runner.max_batch),
                max_delay=self.limits.max_delay,
                capacity=self.limits.queue,
                expected=lambda: self._decoding > 0,
                on_batch=self.metrics.batch,
            )
        )
        self._is_open = True
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._is_open = False
        await self._block.aclose()

    @property
    def ready(self) -> bool:
        """Whether it answers, and will for a while."""
        return self._is_open and not self.draining

    async def pixels(self, pixels: np.ndarray) -> Outputs:
        """Answer for pixels as the graph takes them.

        Args:
            pixels: uint8, (N, height, width, 3).

        Raises:
            RequestError: the queue is full.
        """
        return (await self._batcher.submit(pixels)).outputs

    async def file(self, content: bytes, which: str = "") -> Seen:
        """Answer for the bytes of an image file.

        Args:
            content: of the file.
            which: what an error calls it. Defaults to "".

        Raises:
            RequestError: the queue is full, or the file is no image that can be decoded.
        """
        if self._load() >= self.limits.queue:
            raise busy(
                f"Expected room in the queue. Received: {self._load()} of {self.limits.queue} places taken. "
                "Ask again later."
            )
        began = time.perf_counter()
        self._decoding += 1
        try:
            decoded, waited = await self._decoded(content)
        except ImageError as error:
            self.metrics.image(error.status)
            raise of_image(error, which) from None
        except MemoryError:
            self.metrics.image("too_large")
            raise of_image(ImageError("more than fits into the memory that is left", "too_large"), which) from None
        finally:
            self._decoding -= 1
        seconds = time.perf_counter() - began - waited
        self.metrics.image("damaged" if decoded.damage else "ok")
        computed = await self._batcher.submit(decoded.pixels[None])
        return Seen(decoded, computed._replace(queued=computed.queued + waited), seconds)

    async def _decoded(self, content: bytes) -> tuple[Decoded, float]:
        """Decode in a thread, once one is free: what lies before a busy one would stay when its client is gone.

        Returns:
            tuple[Decoded, float]: the picture, and the seconds that it waited for a thread.
        """
        began = time.perf_counter()
        await self._turns.acquire()
        waited = time.perf_counter() - began
        loop = asyncio.get_running_loop()
        decoding = self._decoders.submit(self._decode, content)
        decoding.add_done_callback(lambda _: loop.call_soon_threadsafe(self._turns.release))
        return await asyncio.wrap_future(decoding), waited

    def _decode(self, content: bytes) -> Decoded:
        settings = self.deployment.settings
        return self.deployment.card.decode.decode(
            content, keep_damaged=settings.keep_damaged, largest_file=settings.largest_file
        )

    def _load(self) -> int:
        """Return the images that are decoded or wait."""
        return self._decoding + (self._batcher.waiting if self._is_open else 0)


def _open(classifier: BatchClassifier, max_batch: int) -> None:
    """Open the runner in the thread that will own it, and run it once alone and once with a full batch."""
    classifier.__enter__()
    try:
        card = classifier.deployment.card
        card.check_runner(classifier.runner, classifier.deployment.choice.name)
        for images in (1, min(max_batch, classifier.runner.max_batch)):
            classifier.runner.infer(np.zeros((images, *card.size, 3), np.uint8))
    except BaseException:
        classifier.__exit__()
        raise
