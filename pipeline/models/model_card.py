"""What belongs to a model besides its weights: classes, decoding, preprocessing. ``train/model.json``.

What a picture goes through is read here and nowhere else: it was settled when the model was trained, and a recipe that
says otherwise is refused.
Permission to run code that a model holds is not in here: it comes from the recipe alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export.errors import ModelError, ProjectError
from export.preprocessing import PreprocessingSpec
from export.records import read_record, to_json
from export.words import count
from pipeline.artifacts.files import write_json
from pipeline.artifacts.paths import CARD
from pipeline.data.class_names import model_names
from pipeline.data.decode import DecodeSpec
from pipeline.models.preprocessing import own_preprocessing
from pipeline.recipe.schema import Model, Preprocessing, Recipe

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

    def metadata(self) -> dict[str, object]:
        """What the files made of the model say of themselves, as plain JSON types."""
        return {
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(values=False),
            "decode": to_json(self.decode),
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


def refuse_disagreement(recipe: Recipe, card: ModelCard, retrain: str) -> None:
    """Refuse a recipe that would do something else to a picture than the model was trained and verified with.

    Args:
        recipe: in force.
        card: of the model.
        retrain: the command that trains by this recipe.

    Raises:
        ProjectError: with the key, what the model has and what the recipe says.
    """
    for key, (has, says) in _differences(recipe, card).items():
        anew = f"Leave it as it was, or train anew: `{retrain}`."
        if recipe.model.path is not None and key == "model.input_size":
            anew = f"Leave it out; of a file that takes any size, take it over anew: `{retrain}`."
        raise ProjectError(
            f"{key}: expected {has}, which the model was trained and is verified with ({CARD}). Received: {says}. "
            f"{anew}"
        )


def _differences(recipe: Recipe, card: ModelCard) -> dict[str, tuple[Any, Any]]:
    model = recipe.model
    pairs: dict[str, tuple[Any, Any]] = {
        "data.resize": (card.decode.resize, recipe.data.resize),
        "model.path": (_origin(card.source is not None), _origin(source_of(model) is not None)),
    }
    if model.path is None or model.input_size != Model().input_size:  # a file has its size; the default asks for none
        pairs["model.input_size"] = ("x".join(map(str, card.size)), f"{model.input_size}x{model.input_size}")
    if model.path is None and card.backbone is not None:
        pairs["model.backbone"] = (card.backbone, model.backbone)
    if isinstance(model.preprocessing, str) and model.preprocessing != "auto":
        pairs["model.preprocessing"] = (card.preprocessing.mode, model.preprocessing)
    elif isinstance(model.preprocessing, Preprocessing) and _mean_is_here(model.preprocessing):
        has = replace(card.preprocessing, grey=False)  # which the model says, not the recipe
        own = own_preprocessing(model.preprocessing)
        pairs["model.preprocessing"] = (has.to_dict(values=False), own.to_dict(values=False))
    if not isinstance(model.classes, str) or Path(model.classes).is_file():
        pairs["model.classes"] = (list(card.classes), list(model_names(model.classes) or card.classes))
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _origin(finished: bool) -> str:
    return "a finished model" if finished else "a model that is trained here"


def _mean_is_here(own: Preprocessing) -> bool:
    """Artifacts travel without the mean's file; their card holds its values."""
    return not isinstance(own.mean, str) or Path(own.mean).is_file()
