"""The train stage: two-phase transfer learning, or taking over a finished model as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import add_note
from pipeline.inputs import Consulted, Inputs, Outside, Split
from pipeline.recipe import Recipe
from pipeline.samples import Unreadable
from pipeline.stage import Stage
from pipeline.tensorflow_start import start_tensorflow

CHECKPOINT = ".checkpoint"  # below a recipe's artifacts


@dataclass(frozen=True)
class Trained:
    """What the manifest records.

    Attributes:
        images: how many of each split.
        duplicates: copies of a picture that were left out.
        duplicates_across_splits: of them, those that stood in another split than the one that was kept.
        pictures_in_two_classes: that were left out.
        unreadable_images: that were left out.
        unused_images: of ready-made splits, by the split.
        best_validation_accuracy: of all epochs; None without any, or without validation images.
        skipped_images: unreadable ones, by name, and why.
        source: and those below are of the model's card.
    """

    images: Mapping[str, int]
    duplicates: int
    duplicates_across_splits: int
    pictures_in_two_classes: tuple[str, ...]
    unreadable_images: tuple[Unreadable, ...]
    unused_images: Mapping[str, int]
    best_validation_accuracy: float | None
    skipped_images: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    written_by: str | None = None
    changes: tuple[str, ...] = ()
    backbone: str | None = None
    transfer: bool | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None


def run(inputs: Inputs, settings: Recipe, out: Path) -> Trained:
    """Train the model, from where an interrupted training of the very same inputs stopped, or take it over."""
    from pipeline.checkpoint import Checkpoint

    checkpoint = Checkpoint(inputs.path(CHECKPOINT), inputs.key, settings.train.checkpoint_seconds)
    try:
        start_tensorflow()
        from pipeline.training import train  # imports Keras, which is started without its messages

        result = train(settings, inputs.images, out, checkpoint)
    except (KeyboardInterrupt, OSError) as error:
        if not settings.model.finished:
            add_note(error, checkpoint.keep())
        raise
    checkpoint.remove()
    return result


STAGE = Stage(
    "train",
    inputs=(
        *(Split("train"), Split("validation"), Split("calibration", decides=False), Split("test", decides=False)),
        *(Outside("model.path"), Outside("model.weights"), Outside("model.preprocessing.mean")),
        Consulted(CHECKPOINT),
    ),
    keys=("data", "model", "train"),
    run=run,
    result=Trained,
    takes_new_images=True,
)
