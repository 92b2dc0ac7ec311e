"""The model of a recipe: trained in two phases, published, or imported from a file."""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from export.errors import ImageError
from export.words import count
from pipeline.artifacts.files import write_json
from pipeline.artifacts.output import require_space
from pipeline.artifacts.results import Trained
from pipeline.data.dataset import ImageSet, Pixels
from pipeline.data.decode import DecodeSpec
from pipeline.data.sample import Sample
from pipeline.models.classifier import BuiltClassifier, build_classifier
from pipeline.models.import_model import import_model
from pipeline.models.model_card import ModelCard, source_of
from pipeline.models.weights import set_weights
from pipeline.recipe.schema import Recipe
from pipeline.training.checkpoint import Checkpoint, Epoch, History
from pipeline.training.loop import fit

log = logging.getLogger(__name__)

_OF_THE_CARD = ("source", "written_by", "changes", "backbone", "transfer", "parameters", "trainable_parameters")
_SHOWN = 6  # images, for the report
_COMPARED_ON = 4  # images of the data, for outputs before and after a model is rewritten


def train(settings: Recipe, images: ImageSet, out: Path, checkpoint: Checkpoint | None = None) -> Trained:
    """Train or import the model of a recipe.

    Writes ``model.keras``, ``model.json`` (the card), ``history.json``, ``samples.npz`` (some of the images, for the
    report), ``images.json`` (the images of training and validation) and, if the recipe asks for it,
    ``backbone.weights.h5`` into ``out``.

    Args:
        settings: the recipe.
        images: the splits.
        out: folder to write to.
        checkpoint: where an interrupted training resumes. Defaults to None: it starts from the beginning.

    Returns:
        What the manifest records.

    Raises:
        DataError: unreadable images above the recipe's limit.
        ModelError: the model cannot be built, or the training diverged.
    """
    keras.utils.set_random_seed(settings.train.seed)
    tf.config.experimental.enable_op_determinism()
    side, data = settings.model.input_size, settings.data
    decode = DecodeSpec((side, side), data.resize, jpeg_scaling=data.jpeg_scaling)
    pixels = Pixels(decode, settings.data.max_bad_images)
    history: list[Epoch] = []
    if settings.model.path is not None:
        photographs = partial(_some_images, images)
        imported = import_model(settings.model, images.classes, data.resize, photographs, data.jpeg_scaling)
        model, card = imported.model, imported.card
        _require_space(model, out)
        pixels = Pixels(card.decode, settings.data.max_bad_images)
    elif settings.model.head == "published":
        built = build_classifier(settings.model, len(images.classes))
        model = built.model
        _require_space(model, out)
        card = ModelCard(images.classes, built.preprocessing, decode, "softmax", source=source_of(settings.model))
    else:
        built, history = _train_new(settings, images, pixels, out, checkpoint)
        model, transfer = built.model, settings.model.weights is not None
        card = ModelCard(
            images.classes, built.preprocessing, decode, "softmax", backbone=settings.model.backbone, transfer=transfer
        )
        if settings.train.save_backbone:
            built.backbone.save_weights(out / "backbone.weights.h5")
    shown, labels = pixels.all(list(islice(interleave_classes(images.splits["train"]), _SHOWN)), "sample images")
    np.savez(out / "samples.npz", pixels=shown, labels=labels)
    model.save(out / "model.keras", include_optimizer=False)
    card = replace(
        card,
        parameters=int(model.count_params()),
        trainable_parameters=int(sum(math.prod(weight.shape) for weight in model.trainable_weights)),
    )
    write_json(out / "model.json", card)
    write_json(out / "history.json", History(tuple(history)))
    write_json(out / "images.json", {split: images.table(split) for split in ("train", "validation")})
    return Trained(
        images={split: len(images.splits[split]) for split in ("train", "validation")},
        duplicates=images.duplicates,
        duplicates_across_splits=images.crossing,
        pictures_in_two_classes=images.conflicts,
        unreadable_images=images.unreadable,
        unused_images={str(ready): number for ready, number in images.unused.items()},
        best_validation_accuracy=max((e.val_accuracy for e in history if e.val_accuracy is not None), default=None),
        skipped_images=pixels.skipped,
        **{name: getattr(card, name) for name in _OF_THE_CARD},
    )


def _some_images(images: ImageSet, decode: DecodeSpec) -> np.ndarray | None:
    """Decode some images of several classes; None where none can be read (later stages count those)."""
    samples = [sample for split in ("calibration", "test", "train") for sample in images.splits[split]]
    decoded = []
    for sample in islice(interleave_classes(samples), _COMPARED_ON):
        with contextlib.suppress(ImageError):
            decoded.append(decode.pixels(sample.read()))
    return np.stack(decoded) if decoded else None


def interleave_classes(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Yield the first sample of every class, then the second of every class, and so on."""
    classes: dict[int, list[Sample]] = {}
    for sample in samples:
        classes.setdefault(sample.label, []).append(sample)
    for row in zip_longest(*(classes[label] for label in sorted(classes))):
        yield from (sample for sample in row if sample is not None)


def _train_new(
    settings: Recipe, images: ImageSet, pixels: Pixels, out: Path, checkpoint: Checkpoint | None
) -> tuple[BuiltClassifier, list[Epoch]]:
    """Build and train a model, on all GPUs of the machine and, by default, in mixed precision where there are any."""
    gpus = tf.config.list_physical_devices("GPU")
    mixed = {"always": True, "never": False}.get(settings.train.mixed_precision, bool(gpus))
    strategy = tf.distribute.MirroredStrategy() if len(gpus) > 1 else None
    policy = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_float16" if mixed else "float32")
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            built = build_classifier(settings.model, len(images.classes))
        _require_space(built.model, out)  # before hours are spent
        log.info(
            "training on %s%s",
            f"{count(len(gpus), 'GPU')}" if gpus else "the CPU",
            ", mixed precision" if mixed else "",
        )
        history = fit(settings, built, images, pixels, checkpoint, strategy)
    finally:
        keras.config.set_dtype_policy(policy)
    if mixed or strategy is not None:  # the export needs the same weights in a plain float32 model
        plain = build_classifier(replace(settings.model, weights=None), len(images.classes))
        set_weights(plain.model, built.model.get_weights())
        built = plain
    return built, history


def _require_space(model: keras.Model, out: Path) -> None:
    parameters = int(model.count_params())
    require_space(out, 4 * parameters, f"model.keras with its {count(parameters, 'weight')}")
