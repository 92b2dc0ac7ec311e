"""Check whether a recipe's model can be built and exported, before TensorFlow is imported or anything is trained."""

from export.errors import ModelError
from export.words import count
from pipeline.recipe.backbones import BACKBONES, by_family
from pipeline.recipe.published_weights import published_backbones
from pipeline.recipe.schema import IMAGENET, Model, Recipe

PUBLISHED_CLASSES = 1000


def check_model(config: Model) -> None:
    """Refuse settings that the backbone does not support; a model file is checked elsewhere.

    Raises:
        ModelError: With the key and what it accepts.
    """
    if config.path is not None:
        return
    entry = BACKBONES[config.backbone]
    published = config.head == "published"
    rules = (  # what is refused, and why
        (
            entry.normalises_inside and config.preprocessing not in ("auto", "none"),
            f"model.preprocessing: expected auto or none, because {config.backbone} normalises 0..255 in its first "
            f"layers. Received: {config.preprocessing}.",
        ),
        (
            published and (entry.application is None or config.weights is None),
            "model.head: published needs a backbone of keras.applications and its weights. Received: "
            f"model.backbone {config.backbone}, model.weights {config.weights}. Set model.weights to imagenet or to "
            "a file that holds the top too.",
        ),
        (
            published and entry.flat_top and config.input_size != entry.native,
            f"model.input_size: expected {entry.native}, the only one that the published head of {config.backbone} "
            f"takes. Received: {config.input_size}.",
        ),
    )
    for is_refused, message in rules:
        if is_refused:
            raise ModelError(message)
    if config.weights == IMAGENET:
        check_published(config.backbone)


def check_published(backbone: str) -> None:
    """Refuse ``model.weights: imagenet`` for a backbone whose weights are not published with a hash.

    Raises:
        ModelError: With the backbones that have published weights.
    """
    if backbone not in published_backbones():
        raise ModelError(
            f"model.weights: expected a file. Received: {IMAGENET} for {backbone}, for which Keras publishes no "
            f"weights with a hash. ImageNet weights exist for {by_family(published_backbones(), backbone)}. "
            "Name one of these as model.backbone, or a file that you trust as model.weights."
        )


def check_published_head(config: Model, classes: int) -> None:
    """Refuse the published head for any number of classes but its own.

    Raises:
        ModelError: With both numbers.
    """
    if config.path is None and config.head == "published" and classes != PUBLISHED_CLASSES:
        raise ModelError(
            f"model.head: published has {PUBLISHED_CLASSES:,} outputs. Received: {count(classes, 'class', 'classes')}. "
            "Name all of them in data.classes (a file, or imagenet), or use model.head=new."
        )


def check_with_classes(recipe: Recipe, classes: int) -> None:
    """Refuse settings that do not fit the number of classes.

    Raises:
        ModelError: With the key and the number of classes.
    """
    check_published_head(recipe.model, classes)
    if recipe.export.top_k > classes:
        raise ModelError(
            f"export.top_k: expected at most {classes:,}, the number of classes. Received: {recipe.export.top_k}. "
            f"Write --set export.top_k={classes}"
        )
