"""Stages and their parts, run for a recipe's context without the executor: nothing is compared or put in place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import Key
from pipeline.artifacts.paths import Artifacts
from pipeline.serving import select_model
from pipeline.verification import verify
from pipeline.workflow.context import Context
from pipeline.workflow.stage import Stage

if TYPE_CHECKING:
    from pipeline.serving.select_model import Selection
    from pipeline.verification.parity import Candidate


def run_stage(stage: Stage, context: Context, out: Path) -> Any:
    """What a stage returns that gets its declared inputs as they lie there."""
    with context.invocation.completing_errors():
        return stage.run(stage.hand_over(context, Key({}, {}, "")), stage.settings(context), out)


def choose(context: Context, *args: Any, **more: Any) -> Selection:
    """The file that serves."""
    return select_model.select_model(Artifacts(context.root), context.settings, *args, **more)


def list_candidates(context: Context) -> list[Candidate]:
    """The files that verify runs."""
    return verify.list_candidates(Artifacts(context.root), context.settings.runtime)
