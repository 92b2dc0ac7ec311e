"""Small pictures of test images, by their index, from the pixels that were judged."""

from collections.abc import Iterable

from pipeline.artifacts.paths import REFERENCE, Artifacts
from pipeline.models.model_card import ModelCard
from pipeline.reporting.charts import data_uri, read_labelled

SMALL = 64  # pixels of the longer side


def small_pictures(artifacts: Artifacts, card: ModelCard, images: Iterable[int], number: int) -> dict[int, str]:
    """Return data URIs of some test images by their index; none where the pixels are of other images.

    Args:
        artifacts: of a recipe.
        card: of the model.
        images: indices among the test images.
        number: of test images.

    Raises:
        ProjectError: ``reference.npz`` is damaged, or of another model.
    """
    pixels, _ = read_labelled(artifacts.path(REFERENCE), card, "Run the verify stage again.")
    if len(pixels) != number:
        return {}
    return {image: data_uri(pixels[image], SMALL) for image in set(images) if 0 <= image < number}
