"""The deployment of a recipe: which of its files answers here, with everything that other processes need for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from export.words import listed
from pipeline.artifacts.inputs import recipe_changes
from pipeline.artifacts.manifest import read_manifest
from pipeline.artifacts.paths import KERAS, Artifacts
from pipeline.inference.classify import Settings
from pipeline.inference.deployment import Deployment
from pipeline.recipe.load import load_recipe
from pipeline.recipe.locate import find_recipe, refuse_name_in_use
from pipeline.serving.select_model import Selection, select_model
from pipeline.terminal.command_line import ARTIFACTS
from pipeline.workflow.context import Context

log = logging.getLogger(__name__)


def select(
    context: Context,
    backend: str = "auto",
    precision: str = "auto",
    allow_unverified: bool = False,
    batch_size: int = 1,
) -> Selection:
    """Select the file of a recipe that answers, and say what a person should know about it.

    Args:
        context: of the recipe.
        backend: see `pipeline.serving.select_model.select_model`; the others likewise.
        precision: likewise.
        allow_unverified: likewise.
        batch_size: likewise.
    """
    choice = select_model(Artifacts(context.root), context.settings, backend, precision, allow_unverified, batch_size)
    if not (context.root / KERAS).is_file():
        log.info("%s is not here; %s classifies, which was compared with it when verified", KERAS, choice.name)
    return choice


def warn_of_recipe_changes(context: Context) -> None:
    """Warn where the recipe has changed since its model was trained, which predicts as it was trained."""
    if changes := recipe_changes(read_manifest(context.folder("train")), context.recipe):
        log.warning(
            "the model predicts as it was trained; the recipe has changed since: %s", listed(changes, separator="; ")
        )


def deploy(
    context: Context,
    backend: str = "auto",
    precision: str = "auto",
    *,
    allow_unverified: bool = False,
    batch_size: int | None = None,
    top_k: int | None = None,
    threshold: float = 0.0,
    keep_damaged: bool = False,
    threads: int = 0,
) -> Deployment:
    """Return what other processes need to answer with a recipe's model.

    Args:
        context: of the recipe.
        backend: see `pipeline.serving.select_model.select_model`. Defaults to "auto".
        precision: likewise. Defaults to "auto".
        allow_unverified: likewise. Defaults to False.
        batch_size: images that are computed at once, at most. Defaults to None: the recipe's.
        top_k: classes per row. Defaults to None: the recipe's.
        threshold: classes with a smaller probability are left out of a row. Defaults to 0: none is.
        keep_damaged: whether a damaged image is answered where its format allows it. Defaults to False.
        threads: of ONNX Runtime on the CPU. Defaults to 0: one for each core.

    Raises:
        ProjectError: see `pipeline.serving.select_model.select_model` and `Context.card`.
    """
    card, section = context.card(), context.recipe.infer
    warn_of_recipe_changes(context)
    size = section.batch_size if batch_size is None else batch_size
    with context.invocation.completing_errors():
        choice = select(context, backend, precision, allow_unverified, size)
    choice.announce()
    choice = replace(choice, path=choice.path.absolute())  # for processes that work in another folder
    settings = Settings(
        batch_size=min(size, choice.most_at_once),
        top_k=section.top_k if top_k is None else top_k,
        threshold=threshold,
        decode_threads=section.decode_threads,
        keep_damaged=keep_damaged,
        largest_file=section.max_file_mib * 2**20,
    )
    return Deployment(context.recipe.name, choice, card, settings, choice.digest(), threads)


def read_deployment(
    recipe: str | Path,
    *,
    artifacts: Path | str = ARTIFACTS,
    overrides: Sequence[str] = (),
    backend: str = "auto",
    precision: str = "auto",
    top_k: int | None = None,
    batch_size: int | None = None,
    threads: int = 0,
) -> Deployment:
    """Return the deployment of a recipe whose chain is finished, for programs.

    Args:
        recipe: its name in ``configs/``, or its path.
        artifacts: folder of all recipes' artifacts.
        overrides: ``section.key=value``, as after ``--set``. Defaults to none.
        backend: see `deploy`. Defaults to "auto".
        precision: likewise. Defaults to "auto".
        top_k: likewise. Defaults to None: the recipe's.
        batch_size: likewise. Defaults to None: the recipe's.
        threads: likewise. Defaults to 0.

    Raises:
        ProjectError: the recipe is invalid, or none of its files may answer here.
    """
    path = find_recipe(Path(recipe), Path(artifacts))
    loaded = load_recipe(path, overrides)
    refuse_name_in_use(loaded, path, Path(artifacts), overrides)
    context = Context(loaded, path, Path(artifacts), overrides)
    return deploy(context, backend, precision, top_k=top_k, batch_size=batch_size, threads=threads)
