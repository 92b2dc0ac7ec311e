"""A recipe against the model that it is used with: what happens to a picture was settled when the model was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.card import ModelCard, source_of
from pipeline.class_names import model_names
from pipeline.errors import PipelineError
from pipeline.layout import CARD
from pipeline.recipe import Model, Preprocessing, Recipe


def refuse_disagreement(recipe: Recipe, card: ModelCard, retrain: str) -> None:
    """Refuse a recipe that would do something else to a picture than the model was trained and verified with.

    Args:
        recipe: in force.
        card: of the model.
        retrain: the command that trains by this recipe.

    Raises:
        PipelineError: with the key, what the model has and what the recipe says.
    """
    for key, (has, says) in _differences(recipe, card).items():
        anew = f"Leave it as it was, or train anew: `{retrain}`."
        if recipe.model.path is not None and key == "model.input_size":
            anew = f"Leave it out; of a file that takes any size, take it over anew: `{retrain}`."
        raise PipelineError(
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
        from pipeline.own_preprocessing import own_preprocessing

        has = replace(card.preprocessing, grey=False)  # which the model says, not the recipe
        own = own_preprocessing(model.preprocessing)
        pairs["model.preprocessing"] = (has.to_dict(values=False), own.to_dict(values=False))
    if not isinstance(model.classes, str) or Path(model.classes).is_file():
        names = model_names(model.classes)
        pairs["model.classes"] = (list(card.classes), list(names or card.classes))
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _origin(finished: bool) -> str:
    return "a finished model" if finished else "a model that is trained here"


def _mean_is_here(own: Preprocessing) -> bool:
    """Artifacts travel without the mean's file; their card holds its values."""
    return not isinstance(own.mean, str) or Path(own.mean).is_file()
