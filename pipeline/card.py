"""What belongs to a model besides its weights: classes, preprocessing, size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.preprocessing import PreprocessingSpec
from pipeline.errors import ModelError
from pipeline.files import read_json, write_json


@dataclass(frozen=True)
class ModelCard:
    """What belongs to a model besides its weights; written beside it as ``model.json``."""

    classes: tuple[str, ...]
    preprocessing: PreprocessingSpec
    size: tuple[int, int]  # height, width
    output: str  # "auto", "logits" or "softmax": what the Keras model ends with
    allow: tuple[str, ...]  # Lambda layers that may run

    def write(self, path: Path, **extra: Any) -> None:
        """Write it as JSON, with further facts for people."""
        card = {
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "size": list(self.size),
            "output": self.output,
            "allow": list(self.allow),
        }
        write_json(path, card | extra)

    @staticmethod
    def read(path: Path) -> ModelCard:
        """Read ``model.json``.

        Raises:
            PipelineError: missing or damaged.
        """
        tree = read_json(path)
        try:
            height, width = tree["size"]
            return ModelCard(
                tuple(tree["classes"]),
                PreprocessingSpec.from_dict(tree["preprocessing"]),
                (height, width),
                tree["output"],
                tuple(tree["allow"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"Expected the model card of this version in {path}. Received: {error!r}. Run the train stage again."
            ) from error
