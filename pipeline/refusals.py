"""What a stage would refuse at once, found without running it: no TensorFlow, nothing decoded, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.context import Context
from pipeline.errors import ModelError
from pipeline.split_sizes import check_split_sizes, needed_images
from pipeline.stage import Stage


def refuse_in_advance(stage: Stage[Any], context: Context) -> None:
    """Raise what a stage that has to run would raise before it works on anything.

    Raises:
        DataError: the images are not here, or too few of them for a split.
        ModelError: ``model.path`` is no model file, holds code that is not allowed, or is no image classifier.
    """
    if stage.name == "train":
        check_split_sizes(context.images, needed_images(context.recipe, len(context.images.classes)))
        if (path := context.recipe.model.path) is not None:
            _refuse_model(Path(path), context)
    elif stage.name == "quantize":
        check_split_sizes(context.images, {"calibration": context.recipe.quantize.min_images})


def _refuse_model(path: Path, context: Context) -> None:
    from pipeline.endings import why_no_classifier
    from pipeline.model_file import read_model_file
    from pipeline.model_safety import refuse_unsafe

    file = read_model_file(path)
    refuse_unsafe(file.findings, context.recipe.model.allow, str(path))
    if cannot := why_no_classifier(file):
        raise ModelError(
            f"model.path: expected an image classifier. Received: {path}: {cannot}. "
            "`python -m pipeline inspect` says how to cut a model to its classifier."
        )
