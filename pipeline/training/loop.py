"""Two-phase transfer learning: the loop, the best weights, early stopping, resuming."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from export.errors import ModelError
from export.words import count
from pipeline.data.dataset import ImageSet, Pixels
from pipeline.models.classifier import BuiltClassifier
from pipeline.recipe.schema import Augment, Recipe, Train
from pipeline.terminal.console import progress_bar
from pipeline.training.checkpoint import Checkpoint, Epoch, Progress
from pipeline.training.inputs import Batches, Features, Images, Source, compute_features

log = logging.getLogger(__name__)

LOGGED_METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")  # in this order, after each epoch


def fit(
    recipe: Recipe,
    built: BuiltClassifier,
    images: ImageSet,
    pixels: Pixels,
    checkpoint: Checkpoint | None = None,
    strategy: Any = None,
) -> list[Epoch]:
    """Run both phases and set the best weights in the model: by validation accuracy, then loss.

    In the head phase the backbone is frozen, and without augmentation its features are computed once. In the
    fine-tuning phase all layers are trained except, by default, BatchNorm: its statistics would otherwise follow the
    few new images and undo the pretraining. Without validation images the last weights stay.

    Args:
        recipe: with the settings of the training.
        built: the model, changed in place.
        images: the splits; train and validation are used.
        pixels: how images are decoded.
        checkpoint: where the training resumes and saves its state. Defaults to None: neither.
        strategy: the tf.distribute strategy that the model was built under. Defaults to None.

    Returns:
        One record for each epoch, in order.

    Raises:
        DataError: unreadable images above the recipe's limit.
        ModelError: the loss became NaN or infinite.
    """
    settings, spec = recipe.train, built.preprocessing
    if settings.head.epochs == settings.fine_tune.epochs == 0:
        log.warning(
            "train.head.epochs and train.fine_tune.epochs are both 0: nothing is trained, and the model's answers come "
            "from a head with random weights"
        )
    augment = settings.augment if settings.augment != Augment() else None
    train: Source = Images(images.splits["train"], pixels, spec, "train images", augment, settings.seed)
    validation: Source | None = (
        Images(images.splits["validation"], pixels, spec, "validation images") if images.splits["validation"] else None
    )
    state = _State(built.model, checkpoint, settings.early_stopping)
    for phase, options in (("head", settings.head), ("fine_tune", settings.fine_tune)):
        if options.epochs == 0 or (phase, state.progress.phase) == ("head", "fine_tune"):  # done before an interrupt
            continue
        _freeze(built.backbone, phase, settings.fine_tune.freeze_batchnorm)
        model, sources = built.model, (train, validation)
        if phase == "head" and augment is None:
            model, sources = _on_features(built, train, validation, settings.feature_cache_mib)
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            _compile(model, settings, options, steps=math.ceil(len(train.labels) / settings.batch_size))
            state.start(phase, model)
        if state.progress.epochs < options.epochs and not state.stopped:
            _run_phase(model, *sources, settings, phase, options, state)
    if state.best:
        built.model.set_weights(state.best)
    return state.progress.history


def _run_phase(
    model: keras.Model,
    train: Source,
    validation: Source | None,
    settings: Train,
    phase: str,
    options: Any,
    state: _State,
) -> None:
    batches = Batches(train, settings.batch_size, settings.seed)
    log.info(
        "%s phase: %s, learning rate %g, %s%s",
        phase, count(options.epochs, "epoch"), options.learning_rate,
        count(len(model.trainable_weights), "trainable weight"),
        ", on features that are computed once" if isinstance(train, Features) else "",
    )  # fmt: skip

    def after_epoch(epoch: int, logs: Mapping[str, float]) -> None:
        values = {name: float(number) for name, number in logs.items()}
        numbers = ", ".join(f"{name} {values[name]:.4f}" for name in LOGGED_METRICS if name in values)
        log.info("  %s epoch %d/%d: %s", phase, epoch + 1, options.epochs, numbers)
        if not all(map(math.isfinite, values.values())):
            raise ModelError(
                f"Expected a finite loss. Received: {values} in epoch {epoch + 1} of the {phase} phase. "
                f"Lower train.{phase}.learning_rate (now {options.learning_rate:g})."
            )
        state.after_epoch(epoch, values, model)

    with progress_bar(total=options.epochs * len(batches), desc=f"  {phase}", unit="step") as bar:
        model.fit(
            batches,
            validation_data=Batches(validation, settings.batch_size) if validation is not None else None,
            initial_epoch=state.progress.epochs,
            epochs=options.epochs,
            class_weight=_class_weights(train.labels) if settings.class_weights == "balanced" else None,
            callbacks=[
                keras.callbacks.TerminateOnNaN(),
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, logs: batches.set_epoch(epoch),
                    on_train_batch_end=lambda batch, logs: bar.update(),
                    on_epoch_end=after_epoch,
                ),
            ],
            shuffle=False,  # the batches shuffle themselves, in a way that an interrupt does not change
            verbose=0,
        )


def _freeze(backbone: keras.Model, phase: str, freeze_batchnorm: bool) -> None:
    for layer in backbone.layers:
        layer.trainable = phase == "fine_tune" and not (
            freeze_batchnorm and isinstance(layer, keras.layers.BatchNormalization)
        )


def _compile(model: keras.Model, settings: Train, options: Any, steps: int) -> None:
    rate = options.learning_rate
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, options.epochs * steps)
    model.compile(keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])


def _on_features(
    built: BuiltClassifier, train: Source, validation: Source | None, limit_mib: int
) -> tuple[keras.Model, tuple[Source, Source | None]]:
    """Return the head alone, sharing its layers with the model, and the features it is trained on.

    Above the limit of memory, return the arguments: the backbone then runs in every epoch.
    """
    cut = built.model.get_layer(built.head_input).output
    if len(cut.shape) != 2:
        return built.model, (train, validation)
    images = len(train.labels) + (len(validation.labels) if validation is not None else 0)
    nbytes = images * cut.shape[-1] * 4
    if nbytes > limit_mib * 2**20:
        log.info(
            "the features of %s take %d MiB, more than train.feature_cache_mib (%d): the frozen backbone runs "
            "in every epoch", count(images, "image"), nbytes // 2**20, limit_mib,
        )  # fmt: skip
        return built.model, (train, validation)
    extractor = keras.Model(built.model.input, cut)
    features = compute_features(extractor, train, "train images")
    held_out = compute_features(extractor, validation, "validation images") if validation is not None else None
    return keras.Model(cut, built.model.output), (features, held_out)


def _class_weights(labels: np.ndarray) -> dict[int, float]:
    """Weight each class so that all count alike: N / (classes * images of the class)."""
    classes, counts = np.unique(labels, return_counts=True)
    return {int(c): float(len(labels) / (len(classes) * n)) for c, n in zip(classes, counts)}


class _State:
    """Best weights, early stopping and the checkpoint, over both phases."""

    def __init__(self, model: keras.Model, checkpoint: Checkpoint | None, patience: int) -> None:
        self._whole, self._checkpoint, self._patience = model, checkpoint, patience
        saved = checkpoint.read() if checkpoint is not None else None
        self.progress = saved or Progress()
        self.best: list[np.ndarray] = self.progress.arrays.get("best", [])
        self._resumed = saved is not None
        if saved is not None:
            model.set_weights(saved.arrays["model"])
            log.info("resuming after %s", count(len(saved.history), "epoch"))

    @property
    def stopped(self) -> bool:
        """Whether early stopping has ended this phase."""
        return bool(self._patience) and self.progress.waited >= self._patience

    def start(self, phase: str, model: keras.Model) -> None:
        """Begin a phase, or resume it from the checkpoint."""
        model.optimizer.build(model.trainable_variables)
        if self._resumed and self.progress.phase == phase:
            arrays = self.progress.arrays
            for variable, value in (
                *zip(model.optimizer.variables, arrays["optimizer"]),
                *zip(_random_states(self._whole), arrays["random"]),
            ):
                variable.assign(value)
            self._resumed, self.progress.arrays = False, {}
        else:
            self.progress.phase, self.progress.epochs, self.progress.waited = phase, 0, 0

    def after_epoch(self, epoch: int, values: dict[str, float], model: keras.Model) -> None:
        """Record an epoch, its weights if they are the best so far, and the checkpoint."""
        progress = self.progress
        progress.epochs = epoch + 1
        progress.history.append(Epoch(progress.phase, len(progress.history) + 1, **values))
        progress.waited += 1
        if "val_accuracy" in values:
            score = (values["val_accuracy"], -values["val_loss"])
            if progress.score is None or score > progress.score:
                progress.score, progress.waited, self.best = score, 0, self._whole.get_weights()
            if self.stopped:
                log.info("no better epoch in %d: the %s phase ends early", self._patience, progress.phase)
                model.stop_training = True
        if self._checkpoint is not None:
            arrays = {
                "model": self._whole.get_weights(),
                "best": self.best,
                "optimizer": [np.asarray(v) for v in model.optimizer.variables],
                "random": [np.asarray(v) for v in _random_states(self._whole)],
            }
            # A copy: the training continues, and the checkpoint may be written later, when it is interrupted.
            self._checkpoint.put(replace(progress, history=list(progress.history), arrays=arrays))


def _random_states(model: keras.Model) -> list[Any]:
    return [layer.seed_generator.state for layer in model.layers if hasattr(layer, "seed_generator")]
