"""Small pictures of test images, by their index, from the pixels that were judged."""

from collections.abc import Iterable

from pipeline.artifacts.array_rows import each_row
from pipeline.artifacts.paths import REFERENCE, Artifacts
from pipeline.models.model_card import ModelCard
from pipeline.reporting.charts import data_uri, read_labels

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
    path = artifacts.path(REFERENCE)
    if len(read_labels(path, card, "Run the verify stage again.")) != number:
        return {}
    wanted = sorted({image for image in images if 0 <= image < number})
    return {image: data_uri(pixels, SMALL) for image, pixels in zip(wanted, each_row(path, "pixels", wanted))}
