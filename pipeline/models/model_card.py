"""The model card, ``train/model.json``: classes, decoding, preprocessing and origin of a model.

The card is the only source of decoding and preprocessing: training sets them, and a recipe that disagrees is refused.
Permission to run code in a model file is not part of the card: it comes from the recipe alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export.errors import ProjectError
from export.preprocessing import PreprocessingSpec
from export.records import read_record, to_json
from export.words import count
from pipeline.artifacts.paths import CARD
from pipeline.data.class_names import model_names
from pipeline.data.decode import DecodeSpec
from pipeline.models.preprocessing import own_preprocessing
from pipeline.recipe.locate import UNPACKED
from pipeline.recipe.schema import Model, Preprocessing, Recipe
from pipeline.terminal.command_line import COMMAND, CommandNeededError

if TYPE_CHECKING:
    from pipeline.runners.base import Runner

OF_A_BUNDLE = (  # what a receiver does about a card that cannot be read
    "Another version made this bundle, or it was changed: make it again with `bundle` of this version where the model "
    "was trained, and unpack it with --force."
)
Output = Literal["auto", "logits", "softmax", "sigmoid"]


@dataclass(frozen=True)
class ModelCard:
    """What a model needs besides its weights.

    Attributes:
        classes: names of the outputs, in their order.
        preprocessing: what the graph does to pixels.
        decode: how the host decodes an image before that.
        output: the kind of output of the Keras model.
        source: origin of a finished model: its file name, or the published backbone. None for a trained one.
        written_by: the Keras that wrote that file, such as "Keras 2.2.5".
        changes: rewrites that left the outputs unchanged, as sentences.
        deviations: where the recipe makes the outputs differ from those of the file, as sentences.
        doubts: reasons to distrust a setting of the recipe, as sentences.
        backbone: that was trained; None where nothing was.
        transfer: whether it was trained from pretrained weights.
        parameters: number of all weights.
        trainable_parameters: number of weights that the last phase trained.
        schema: version of the file format.
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
    schema: int = 4

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
        """Return the metadata that exported files carry, as plain JSON types."""
        return {
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(values=False),
            "decode": to_json(self.decode),
        }

    def check_runner(self, runner: Runner, name: str) -> None:
        """Refuse an open runner whose file was exported from another model than this card's, or to other pixels.

        Raises:
            CommandNeededError: another number of classes, or metadata that differs from the card's.
        """
        if runner.classes != len(self.classes):
            raise CommandNeededError(
                f"Expected {count(runner.classes, 'class name')}, as {name} has outputs. Received: "
                f"{len(self.classes)} in {CARD}. Run `{COMMAND}` again, or bring back the card that belongs to the "
                "model.",
                "run",
            )
        for key, value in self.metadata().items() if runner.metadata is not None else ():
            received = (runner.metadata or {}).get(key)
            if received != value:
                raise CommandNeededError(
                    f"Expected {name} with the {key} of {CARD}: {value!r:.200}. Received: {received!r:.200}. "
                    f"Run `{COMMAND}` again, which exports the model and makes what follows.",
                    "run",
                )


def read_card(path: Path | str) -> ModelCard:
    """Read ``model.json``.

    A card of an earlier version is refused: its model was trained on pixels that are decoded otherwise now.

    Raises:
        ProjectError: missing, damaged, or of another schema, in the artifacts of a bundle, whose receiver cannot train.
        CommandNeededError: the same in other artifacts; with the file, the key and the command.
    """
    path = Path(path)
    if (path.parent.parent / UNPACKED).is_file():
        return read_record(ModelCard, path, remedy=OF_A_BUNDLE, what="model card")
    try:
        return read_record(ModelCard, path, remedy=f"Run `{COMMAND}` again.", what="model card")
    except ProjectError as error:
        raise CommandNeededError(str(error), "train") from error


def source_of(model: Model) -> str | None:
    """Return the card's ``source``: the file name or the published backbone; None where the recipe trains a model."""
    if model.path is not None:
        return Path(model.path).name
    return f"{model.backbone} with its 1,000 ImageNet classes" if model.head == "published" else None


def refuse_disagreement(recipe: Recipe, card: ModelCard, retrain: str) -> None:
    """Refuse a recipe that disagrees with the settings that the model was trained and verified with.

    Args:
        recipe: in force.
        card: of the model.
        retrain: the command that trains with this recipe.

    Raises:
        ProjectError: with the key and both values.
    """
    for key, (expected, received) in _differences(recipe, card).items():
        file_size = recipe.model.path is not None and key == "model.input_size"
        advice = (
            "Leave it out, or, for a file that takes any size, import it again" if file_size
            else "Leave it as it was, or train again"
        )  # fmt: skip
        raise ProjectError(
            f"{key}: expected {expected}, which the model was trained and is verified with ({CARD}). "
            f"Received: {received}. {advice}: `{retrain}`."
        )


def _differences(recipe: Recipe, card: ModelCard) -> dict[str, tuple[Any, Any]]:
    model = recipe.model
    pairs: dict[str, tuple[Any, Any]] = {
        "data.resize": (card.decode.resize, recipe.data.resize),
        "data.jpeg_scaling": (card.decode.jpeg_scaling, recipe.data.jpeg_scaling),
        "model.path": (_origin(card.source is not None), _origin(source_of(model) is not None)),
    }
    if model.path is None or model.input_size != Model().input_size:  # for a file, the default counts as not set
        pairs["model.input_size"] = ("x".join(map(str, card.size)), f"{model.input_size}x{model.input_size}")
    if model.path is None and card.backbone is not None:
        pairs["model.backbone"] = (card.backbone, model.backbone)
    if isinstance(model.preprocessing, str) and model.preprocessing != "auto":
        pairs["model.preprocessing"] = (card.preprocessing.mode, model.preprocessing)
    elif isinstance(model.preprocessing, Preprocessing) and (
        # Artifacts travel without the mean's file; their card holds its values.
        not isinstance(model.preprocessing.mean, str) or Path(model.preprocessing.mean).is_file()
    ):
        trained = replace(card.preprocessing, grey=False)  # grey comes from the model, not from the recipe
        pairs["model.preprocessing"] = (
            trained.to_dict(values=False),
            own_preprocessing(model.preprocessing).to_dict(values=False),
        )
    if not isinstance(model.classes, str) or Path(model.classes).is_file():
        pairs["model.classes"] = (list(card.classes), list(model_names(model.classes) or card.classes))
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _origin(finished: bool) -> str:
    return "a finished model" if finished else "a model that is trained here"
