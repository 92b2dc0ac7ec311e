"""Inputs of a training: preprocessed and optionally augmented pixels, or features that are computed once."""

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

CACHE_BYTES = 512 * 2**20  # decoded images up to this size stay in memory; beyond it each epoch decodes them again
FEATURE_BATCH = 64


class Images:
    """Labelled, preprocessed images. If they exceed `CACHE_BYTES`, they are decoded again in each epoch.

    Every image is decoded once at the start, so that unreadable ones are reported before the training begins.

    Args:
        samples: the images.
        pixels: how they are decoded.
        spec: the preprocessing of the model.
        description: for messages and progress bars.
        augment: limits of random augmentation. Defaults to None: no augmentation.
        seed: of the augmentation, which depends only on it, the epoch and the image's index. Defaults to 0.

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
            earlier = set(pixels.skipped)
            batches = pixels.batches(samples, 256, f"checking {description}")
            self.labels = np.concatenate([np.zeros(0, np.int64), *(labels for _, labels in batches)])
            unreadable = set(pixels.skipped) - earlier
            self._usable = [sample for sample in samples if sample.name not in unreadable]
        if not len(self.labels):
            raise DataError(f"Expected readable {description}. Received: none of {len(samples)}.")

    @property
    def in_memory(self) -> bool:
        """Whether the decoded pixels are in memory."""
        return self._cached is not None

    def take(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """Return some images of an epoch, augmented and preprocessed: float32 NHWC."""
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
    """Outputs of a frozen backbone for each image, computed once.

    Attributes:
        values: float32 (N, features).
        labels: int64 (N,).
        in_memory: always True.
    """

    values: np.ndarray
    labels: np.ndarray
    in_memory: bool = True

    def take(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """Return the features of some images; they are the same in each epoch."""
        return np.asarray(self.values[indices])


Source = Images | Features  # labelled examples, by index


def compute_features(extractor: keras.Model, source: Source, description: str) -> Features:
    """Run a frozen extractor, from float32 pixels to (N, features), once on each image."""
    count = len(source.labels)
    values = np.empty((count, extractor.output_shape[-1]), dtype=np.float32)
    with progress_bar(total=count, desc=f"  features of {description}", unit="img") as bar:
        for start in range(0, count, FEATURE_BATCH):
            indices = np.arange(start, min(start + FEATURE_BATCH, count))
            values[indices] = extractor.predict_on_batch(source.take(indices, 0))
            bar.update(len(indices))
    return Features(values, source.labels)


def augment_image(pixels: np.ndarray, settings: Augment, random: np.random.Generator) -> np.ndarray:
    """Flip, rotate and zoom an image at random; pixels from outside it are black.

    Args:
        pixels: uint8 (height, width, 3).
        settings: limits of the changes.
        random: generator of the changes.

    Returns:
        uint8 of the same shape.
    """
    if settings.flip and random.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    if not settings.rotation and not settings.zoom:
        return pixels
    angle = math.radians(random.uniform(-settings.rotation, settings.rotation))
    zoom = random.uniform(1 - settings.zoom, 1 + settings.zoom)
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
        batch_size: examples in a batch; the last batch holds the rest.
        shuffle_seed: the order of an epoch depends only on this seed and the attribute ``epoch``, so that a resumed
            training sees the same batches. Defaults to None: not shuffled.
    """

    def __init__(self, source: Source, batch_size: int, shuffle_seed: int | None = None) -> None:
        super().__init__(workers=1 if source.in_memory else os.cpu_count() or 1, use_multiprocessing=False)
        self._source, self._batch_size, self._shuffle_seed = source, batch_size, shuffle_seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the order of an epoch."""
        self.epoch = epoch
        self.order = np.arange(len(self._source.labels))
        if self._shuffle_seed is not None:
            np.random.default_rng((self._shuffle_seed, epoch)).shuffle(self.order)

    def __len__(self) -> int:
        return math.ceil(len(self._source.labels) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.order[index * self._batch_size : (index + 1) * self._batch_size]
        return self._source.take(chosen, self.epoch), self._source.labels[chosen]
