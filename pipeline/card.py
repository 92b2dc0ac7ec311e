"""What belongs to a model besides its weights: classes, decoding, preprocessing. ``train/model.json``.

What a picture goes through is read here and nowhere else; `pipeline.agreement` refuses a recipe that says otherwise.
Permission to run code that a model holds is not in here: it comes from the recipe alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export.preprocessing import PreprocessingSpec
from export.records import read_record, to_json
from pipeline.decode_spec import DecodeSpec
from pipeline.errors import ModelError
from pipeline.files import write_json
from pipeline.layout import CARD
from pipeline.recipe import Model
from pipeline.words import count

if TYPE_CHECKING:
    from pipeline.runners.base import Runner

SCHEMA = 3
REMEDY = "Run the train stage again."
Output = Literal["auto", "logits", "softmax", "sigmoid"]


@dataclass(frozen=True)
class ModelCard:
    """What belongs to a model besides its weights.

    Attributes:
        classes: names of the outputs, in their order.
        preprocessing: what the graph does to pixels.
        decode: what the host does to a picture before.
        output: what the Keras model ends with.
        source: a finished model that was taken over: its file.
        written_by: such as "Keras 2.2.5", of that file.
        changes: what was changed of it, its answers unchanged.
        deviations: where its answers are not those of its file, because the recipe asked for it, as sentences.
        doubts: what speaks against what the recipe asked for, its answers those of the file, as sentences.
        backbone: what was trained; None where nothing was.
        transfer: from pretrained weights.
        parameters: all of them.
        trainable_parameters: those of the last phase.
        schema: of the file.
    """

    classes: tuple[str, ...]
    preprocessing: PreprocessingSpec
    decode: DecodeSpec
    output: Output
    source: str | None = None
    written_by: str | None = None
    changes: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    backbone: str | None = None
    transfer: bool = False
    parameters: int | None = None
    trainable_parameters: int | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(
                f"{count(len(self.classes), 'class', 'classes')}, {len(set(self.classes))} of them different"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.decode.size

    def metadata(self) -> dict[str, Any]:
        """What the files made of the model say of themselves, as plain JSON types."""
        return {
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(values=False),
            "decode": self.decode.to_json(),
        }

    def check_runner(self, runner: Runner, name: str) -> None:
        """Refuse an open runner whose file was made of another model than this card's.

        Raises:
            ModelError: another number of classes, or its metadata is not the card's.
        """
        if runner.classes != len(self.classes):
            raise ModelError(
                f"Expected {runner.classes} class names, as {name} has outputs. Received: {len(self.classes)} in "
                f"{CARD}. Run the train stage again, or bring back the card that belongs to the model."
            )
        for key, value in self.metadata().items() if runner.metadata is not None else ():
            received = (runner.metadata or {}).get(key)
            if received != value:
                raise ModelError(
                    f"Expected {name} with the {key} of {CARD}: {value!r:.200}. Received: {received!r:.200}. "
                    "Run the export stage and those after it again."
                )


def read_card(path: Path | str) -> ModelCard:
    """Read ``model.json``.

    Raises:
        ModelError: missing, damaged, or of another version; with the file and the key.
    """
    return read_record(ModelCard, Path(path), remedy=REMEDY, what="model card")


def write_card(path: Path, card: ModelCard) -> None:
    """Write ``model.json``."""
    write_json(path, to_json(card))


def source_of(model: Model) -> str | None:
    """What a model is that is not trained here, as its card says it: the file's name, or the published one."""
    if model.path is not None:
        return Path(model.path).name
    return f"{model.backbone} with its 1,000 ImageNet classes" if model.head == "published" else None
