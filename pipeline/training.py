"""The train stage: two-phase transfer learning, or taking over a finished model as it is."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.preprocessing import PreprocessingSpec
from pipeline.card import ModelCard
from pipeline.data import ImageSet, Pixels, Sample, check_split_sizes
from pipeline.errors import DataError, ModelError
from pipeline.files import write_json
from pipeline.loading import load_classifier
from pipeline.models import Built, build_classifier, preprocessing_of
from pipeline.progress import progress_bar
from pipeline.recipe import Recipe
from pipeline.tensorflow_start import start_tensorflow

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

CACHE_BYTES = 512 * 2**20  # decoded images up to this size stay in memory; more are decoded in every epoch


def train(recipe: Recipe, images: ImageSet, folder: Path) -> dict[str, Any]:
    """Train (or take over) the model of a recipe.

    Writes ``model.keras``, ``model.json`` (the card), ``history.json``, ``images.json`` (what was trained and
    validated on) and, if the recipe asks for it, ``backbone.weights.h5`` into ``folder``.

    Returns:
        What the manifest records: parameters, images by split, best validation accuracy.

    Raises:
        DataError: unreadable images above the recipe's limit.
        ModelError: the model cannot be built, or the training diverged.
    """
    _check_data(recipe, images)
    start_tensorflow()
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(recipe.train.seed)
    tf.config.experimental.enable_op_determinism()
    skipped: dict[str, Any] = {}
    if recipe.model.path is not None:
        model, card = _take_over(recipe, images)
        history: list[dict[str, Any]] = []
        facts: dict[str, Any] = {"source": Path(recipe.model.path).name}
    else:
        built = build_classifier(recipe.model, len(images.classes))
        model = built.model
        size = (recipe.model.input_size, recipe.model.input_size)
        card = ModelCard(images.classes, built.preprocessing, size, "softmax", ())
        pixels = Pixels(size, recipe.data.resize, recipe.data.max_bad_images)
        history = fit(recipe, built, images, pixels)
        skipped = pixels.result()
        facts = {"backbone": recipe.model.backbone, "transfer": recipe.model.weights is not None}
        if recipe.train.save_backbone:
            built.backbone.save_weights(folder / "backbone.weights.h5")
    model.save(folder / "model.keras", include_optimizer=False)
    trainable = sum(math.prod(w.shape) for w in model.trainable_weights)
    facts |= {"parameters": int(model.count_params()), "trainable_parameters": int(trainable)}
    card.write(folder / "model.json", **facts)
    write_json(folder / "history.json", history)
    write_json(folder / "images.json", {split: images.table(split) for split in ("train", "validation")})
    counts = {split: len(images.splits[split]) for split in ("train", "validation")}
    best = max((epoch["val_accuracy"] for epoch in history), default=None)
    return {
        **facts,
        **skipped,
        "images": counts,
        "duplicates": images.duplicates,
        "duplicates_across_splits": images.crossing,
        "pictures_in_two_classes": list(images.conflicts),
        "best_validation_accuracy": best,
    }


def fit(recipe: Recipe, built: Built, images: ImageSet, pixels: Pixels) -> list[dict[str, Any]]:
    """Run both phases and leave the best weights (by validation accuracy, then loss) in the model.

    In the head phase the backbone is frozen. In the fine-tuning phase everything learns, but (by default) BatchNorm
    layers stay frozen: their statistics would otherwise follow the few new images and undo the pretraining.

    Returns:
        One dictionary an epoch: phase, epoch, loss, accuracy, val_loss, val_accuracy.

    Raises:
        ModelError: the loss became NaN or infinite.
    """
    import keras

    spec, settings = built.preprocessing, recipe.train
    training = make_batches(images.splits["train"], pixels, spec, settings.batch_size, settings.seed, "train images")
    validation = make_batches(images.splits["validation"], pixels, spec, settings.batch_size, None, "validation images")
    best = KeepBest()
    history: list[dict[str, Any]] = []
    for phase, options in (("head", settings.head), ("fine_tune", settings.fine_tune)):
        if options.epochs == 0:
            continue
        for layer in built.backbone.layers:
            frozen_norm = settings.fine_tune.freeze_batchnorm and isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = phase == "fine_tune" and not frozen_norm
        rate = options.learning_rate
        if settings.schedule == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(rate, options.epochs * len(training))
        built.model.compile(
            optimizer=keras.optimizers.Adam(rate),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        log.info(
            "%s phase: %d epochs, learning rate %g, %d trainable weights",
            phase, options.epochs, options.learning_rate, len(built.model.trainable_weights),
        )  # fmt: skip
        result = built.model.fit(
            training,
            validation_data=validation,
            epochs=options.epochs,
            callbacks=[best, _progress(f"  {phase}", options.epochs, len(training)), keras.callbacks.TerminateOnNaN()],
            verbose=0,
        )
        for epoch in range(len(result.epoch)):
            values = {name: float(numbers[epoch]) for name, numbers in result.history.items()}
            if not all(math.isfinite(v) for v in values.values()):
                raise ModelError(
                    f"Expected a finite loss. Received: {values} in epoch {epoch + 1} of the {phase} phase. "
                    f"Lower train.{phase}.learning_rate (now {options.learning_rate:g})."
                )
            history.append({"phase": phase, "epoch": len(history) + 1, **values})
    best.restore(built.model)
    return history


def KeepBest() -> Any:  # noqa: N802 - a class, made late because keras is imported late
    """A callback that keeps the weights of the best epoch in memory, across several calls of ``fit``."""
    import keras

    class _KeepBest(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.score: tuple[float, float] | None = None
            self.weights: list[np.ndarray] = []

        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            logs = logs or {}
            score = (float(logs["val_accuracy"]), -float(logs["val_loss"]))
            if self.score is None or score > self.score:
                self.score, self.weights = score, self.model.get_weights()

        def restore(self, model: keras.Model) -> None:
            if self.weights:
                model.set_weights(self.weights)

    return _KeepBest()


def _progress(description: str, epochs: int, steps: int) -> Any:
    """One progress bar over a phase, and a line an epoch, on standard error."""
    import keras

    class _Progress(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.bar = progress_bar(total=epochs * steps, desc=description, unit="step")

        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            self.bar.update()

        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            values = logs or {}
            numbers = ", ".join(
                f"{name} {values[name]:.4f}" for name in ("loss", "accuracy", "val_loss", "val_accuracy")
            )
            log.info("%s epoch %d/%d: %s", description, epoch + 1, epochs, numbers)

        def on_train_end(self, logs: Any = None) -> None:
            self.bar.close()

    return _Progress()


def make_batches(
    samples: tuple[Sample, ...],
    pixels: Pixels,
    spec: PreprocessingSpec,
    batch_size: int,
    shuffle_seed: int | None,
    description: str,
) -> Any:
    """A Keras data set of (float32 NHWC preprocessed, int64 labels) batches, shuffled every epoch if a seed is given.

    Every image is decoded once here, so that unreadable ones are named before the training starts. Up to 512 MB of
    decoded pixels stay in memory.

    Raises:
        DataError: unreadable images above the recipe's limit, or none left.
    """
    import keras

    height, width = pixels.size
    known_bad = set(pixels.skipped)
    cached: np.ndarray | None = None
    if len(samples) * height * width * 3 <= CACHE_BYTES:
        cached, labels = pixels.all(samples, description)
        usable: list[Sample] = []
    else:
        labels = np.concatenate([y for _, y in pixels.batches(samples, 256, f"checking {description}")])
        usable = [s for s in samples if s.name not in set(pixels.skipped) - known_bad]
    if not len(labels):
        raise DataError(f"Expected readable {description}. Received: none of {len(samples)}.")

    class _Batches(keras.utils.PyDataset):
        def __init__(self) -> None:
            super().__init__(workers=1 if cached is not None else os.cpu_count() or 1, use_multiprocessing=False)
            self.random = np.random.default_rng(shuffle_seed)
            self.order = np.arange(len(labels))
            self.on_epoch_end()

        def __len__(self) -> int:
            return math.ceil(len(labels) / batch_size)

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            chosen = self.order[index * batch_size : (index + 1) * batch_size]
            batch = cached[chosen] if cached is not None else np.stack([pixels.one(usable[i]) for i in chosen])
            return spec.apply(batch), labels[chosen]

        def on_epoch_end(self) -> None:
            if shuffle_seed is not None:
                self.random.shuffle(self.order)

    return _Batches()


def _take_over(recipe: Recipe, images: ImageSet) -> tuple[keras.Model, ModelCard]:
    path = Path(recipe.model.path or "")
    model = load_classifier(path, recipe.model.allow)
    spec = preprocessing_of(recipe.model)
    outputs = model.outputs[0].shape[-1]
    if outputs != len(images.classes):
        raise ModelError(
            f"Expected a model with as many outputs as the data has classes ({len(images.classes)}: "
            f"{', '.join(images.classes[:8])}). Received: {path} with {outputs}."
        )
    _, height, width, _ = model.inputs[0].shape
    return model, ModelCard(images.classes, spec, (height, width), recipe.model.output, recipe.model.allow)


def _check_data(recipe: Recipe, images: ImageSet) -> None:
    """Refuse too few images before the first stage spends time; later stages would find out only then."""
    check_split_sizes(
        images,
        {
            "train": 0 if recipe.model.path else len(images.classes),
            "validation": 0 if recipe.model.path else 1,
            "calibration": recipe.quantize.min_images,
            "test": recipe.verify.min_images,
        },
    )
