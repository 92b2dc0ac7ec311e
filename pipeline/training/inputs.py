"""What a training loop is fed: preprocessed pixels, augmented if the recipe says so, or features computed once."""

import math
import os
from dataclasses import dataclass

import keras
import numpy as np
from PIL import Image

from export.errors import DataError
from export.preprocessing import PreprocessingSpec
from pipeline.data.dataset import Pixels
from pipeline.data.sample import Sample
from pipeline.recipe.schema import Augment
from pipeline.terminal.console import progress_bar

CACHE_BYTES = 512 * 2**20  # decoded images up to this size stay in memory; more are decoded in every epoch
FEATURE_BATCH = 64


class Images:
    """Preprocessed images. Up to 512 MB of decoded pixels stay in memory, others are decoded when they are taken.

    Every image is decoded once at the start, so that unreadable ones are named before the training begins.

    Args:
        samples: the images.
        pixels: how they are decoded.
        spec: what the model expects.
        description: for messages and progress bars.
        augment: random changes, or None.
        seed: of those changes, which follow from it, the epoch and the image's index alone.

    Raises:
        DataError: unreadable images above the recipe's limit, or none left.
    """

    def __init__(
        self,
        samples: tuple[Sample, ...],
        pixels: Pixels,
        spec: PreprocessingSpec,
        description: str,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        height, width = pixels.decode.size
        self._pixels, self._spec, self._augment, self._seed = pixels, spec, augment, seed
        self._cached: np.ndarray | None = None
        self._usable: list[Sample] = []
        if len(samples) * height * width * 3 <= CACHE_BYTES:
            self._cached, self.labels = pixels.all(samples, description)
        else:
            known = set(pixels.skipped)
            parts = [labels for _, labels in pixels.batches(samples, 256, f"checking {description}")]
            self.labels = np.concatenate(parts) if parts else np.zeros(0, np.int64)
            bad = set(pixels.skipped) - known
            self._usable = [s for s in samples if s.name not in bad]
        if not len(self.labels):
            raise DataError(f"Expected readable {description}. Received: none of {len(samples)}.")

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are decoded already."""
        return self._cached is not None

    def take(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """Preprocessed float32 NHWC."""
        batch = (
            np.stack([self._pixels.load(self._usable[i]) for i in indices])
            if self._cached is None
            else self._cached[indices]
        )
        if self._augment is not None:
            batch = np.stack(
                [
                    augment_image(image, self._augment, np.random.default_rng((self._seed, epoch, int(index))))
                    for image, index in zip(batch, indices)
                ]
            )
        return self._spec.apply(batch)


@dataclass(frozen=True)
class Features:
    """What a frozen backbone says of each image, computed once."""

    values: np.ndarray  # float32 (N, features)
    labels: np.ndarray
    in_memory: bool = True

    def take(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """The features of some images; the epoch does not matter, because nothing random stands before them."""
        return np.asarray(self.values[indices])


Source = Images | Features  # labelled examples by index


def compute_features(extractor: keras.Model, source: Source, description: str) -> Features:
    """Run a frozen extractor (float32 pixels to (N, features)) over every image once."""
    count = len(source.labels)
    values = np.empty((count, extractor.output_shape[-1]), dtype=np.float32)
    with progress_bar(total=count, desc=f"  features of {description}", unit="img") as bar:
        for start in range(0, count, FEATURE_BATCH):
            indices = np.arange(start, min(start + FEATURE_BATCH, count))
            values[indices] = extractor.predict_on_batch(source.take(indices, 0))
            bar.update(len(indices))
    return Features(values, source.labels)


def augment_image(pixels: np.ndarray, settings: Augment, random: np.random.Generator) -> np.ndarray:
    """A random flip, rotation and zoom of one image; what comes in from outside is black.

    Args:
        pixels: uint8 (height, width, 3).
        settings: the largest changes.
        random: where they come from.

    Returns:
        uint8 of the same shape.
    """
    flip = settings.flip and random.random() < 0.5
    angle = math.radians(random.uniform(-settings.rotation, settings.rotation))
    zoom = random.uniform(1 - settings.zoom, 1 + settings.zoom)
    if flip:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    if not settings.rotation and not settings.zoom:
        return pixels
    height, width = pixels.shape[:2]
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = width / 2, height / 2
    image = Image.fromarray(pixels).transform(
        (width, height),
        Image.Transform.AFFINE,
        (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(image, dtype=np.uint8)


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """A Keras data set of (float32, int64 labels) batches.

    Args:
        source: the examples.
        batch_size: examples in a batch; the last holds the rest.
        shuffle_seed: None keeps the order; otherwise the order of an epoch follows from this seed and the attribute
            ``epoch`` alone, so that a training which is resumed sees what it would have seen.
    """

    def __init__(self, source: Source, batch_size: int, shuffle_seed: int | None = None) -> None:
        super().__init__(workers=1 if source.in_memory else os.cpu_count() or 1, use_multiprocessing=False)
        self._source, self._batch_size, self._shuffle_seed = source, batch_size, shuffle_seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for an epoch, if this shuffles."""
        self.epoch = epoch
        self.order = np.arange(len(self._source.labels))
        if self._shuffle_seed is not None:
            np.random.default_rng((self._shuffle_seed, epoch)).shuffle(self.order)

    def __len__(self) -> int:
        return math.ceil(len(self._source.labels) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.order[index * self._batch_size : (index + 1) * self._batch_size]
        return self._source.take(chosen, self.epoch), self._source.labels[chosen]
