"""The report's next step: what a reader does with this verdict, with the command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from pipeline.card import ModelCard
from pipeline.command_line import unpack_command
from pipeline.doubts import ITSELF
from pipeline.html import Section, command, text
from pipeline.manifest import Manifest, read_manifest
from pipeline.parity_report import FAIL, INCONCLUSIVE, NOT_RUN, NOT_VERIFIED, ParityReport
from pipeline.published_weights import published_backbones
from pipeline.recipe import IMAGENET
from pipeline.report_failed import Situation, Step, after_failure
from pipeline.report_recipe import make, make_with
from pipeline.report_standing import Standing
from pipeline.stage import Context
from pipeline.words import count, listed, sentence

FEW_EPOCHS, ENOUGH_EPOCHS = 10, 30


def next_step(
    context: Context,
    card: ModelCard,
    stands: Standing,
    parity: ParityReport,
    engines: Mapping[str, str],
    verify: Manifest | None,
) -> Section:
    """The section.

    What makes the verdict void comes first, then what makes it worth little, then what was missed; only where all that
    is well are the files taken further.

    Args:
        context: recipe, overrides, artifacts, for the command.
        card: of the model.
        stands: whether the verdict still holds.
        parity: the verdict.
        engines: verdict on each engine that is there, as it is now, by file.
        verify: the record of the verify stage.

    Raises:
        PipelineError: a record of the quantize stage is missing or damaged.
    """
    situation = Situation(context, card, parity, verify)
    doubts = [warning for warning in parity.warnings if warning not in card.deviations]
    of_model = [doubt for doubt in doubts if doubt in card.doubts or doubt.startswith(ITSELF)]
    behind = _behind(context)
    step: Step | None
    if stands.broken:
        step = Step("Judge the files as they are now", make(context, "run", verify), "What is up to date does not run.")
    elif behind:
        step = Step("Run what is not up to date", make(context, "run", verify), sentence(listed(behind, most=3)))
    elif of_model:
        step = _better_model(situation, of_model[0])
    elif any(hop.verdict == FAIL for hop in parity.hops):
        step = after_failure(situation)
    elif parity.verdict == FAIL:
        why = next((hop.why for hop in parity.hops if hop.why), "")
        step = Step("Run it on a machine that can run the files", make(context, "bundle"), sentence(why))
    elif parity.verdict == INCONCLUSIVE:
        step = _more_images(situation)
    elif doubts and context.recipe.model.head != "published":  # of its 1,000 classes a user has a few
        step = Step("Bring test images of the classes that have none", make(context, "run", verify), doubts[0])
    else:
        step = _onward(situation, engines)
    if step is None:
        return _to_a_gpu(context)
    line = f": {command(step.line)}" if step.line else ""
    return Section("Next step", f"{text(step.title)}{line}. {text(step.more)}".strip())


def _behind(context: Context) -> list[str]:
    """Stages whose results are not of this recipe, or of what other stages wrote since; nothing is hashed."""
    from pipeline.stages import STAGES
    from pipeline.stages.report import SHOWN_STAGES

    stages = [stage for stage in STAGES if stage.name in SHOWN_STAGES]
    records = {stage.name: read_manifest(context.folder(stage.name)) for stage in stages}
    found = []
    for stage in stages:
        record = records[stage.name]
        if record is None:
            found.append(f"{stage.name} has no result")
            continue
        found += [f"{stage.name} was run with other values: {change}" for change in stage.recipe_changes(context)]
        for name, digest in record.inputs.items():
            maker, _, file = name.partition("/")
            written = records[maker].outputs.get(file) if records.get(maker) else None  # type: ignore[union-attr]
            if written is not None and written.sha256 != digest:
                found.append(f"{stage.name} read another {name}")
        missing = [name for name in record.outputs if not (context.folder(stage.name) / name).is_file()]
        found += [f"{stage.name}/{name} is missing" for name in missing]
    return found


def _better_model(situation: Situation, doubt: str) -> Step:
    """What may give a model that knows its classes; comparing its copies with it proves nothing before."""
    context, recipe = situation.context, situation.context.recipe
    if recipe.model.path is not None:
        line = shlex.join(["python", "-m", "pipeline", "inspect", recipe.model.path])
        return Step("See what the model expects", line, doubt)
    if recipe.model.finished:
        return Step("See what the recipe says of preprocessing and classes", context.command("config", "python"), doubt)
    if recipe.model.weights is None and recipe.model.backbone in published_backbones():
        return Step("Start from weights that know pictures", situation.changed(f"model.weights={IMAGENET}"), doubt)
    fine_tune = recipe.train.fine_tune.epochs
    if fine_tune < ENOUGH_EPOCHS:
        epochs = min(ENOUGH_EPOCHS, max(FEW_EPOCHS, 3 * fine_tune))
        return Step("Train longer", situation.changed(f"train.fine_tune.epochs={epochs}"), doubt)
    return Step("Bring more training images", make(context, "run", situation.verify), doubt)


def _onward(situation: Situation, engines: Mapping[str, str]) -> Step | None:
    """After a pass; None: to a GPU."""
    context, verify = situation.context, situation.verify
    if NOT_VERIFIED in engines.values():
        return Step("Verify the engines that came since", make(context, "verify", verify))
    if not engines or NOT_RUN in engines.values():
        gpu = verify.environment.get("gpu") if verify is not None else None
        return _build_here(situation, engines, gpu) if gpu else None
    photos = f"{context.command('infer', 'python')} photos/ -o predictions.csv"
    return Step("Classify your own pictures", photos, "The fastest file that passed answers.")


def _build_here(situation: Situation, engines: Mapping[str, str], gpu: str) -> Step:
    """On a GPU without an engine that runs: build, unless that was tried on it."""
    context, record = situation.context, read_manifest(situation.context.folder("build"))
    if record is None or record.environment.get("gpu") != gpu:
        return Step("Build engines that this GPU runs", f"{context.command('build', 'python')} --force")
    idle = [hop.why for hop in situation.parity.hops if hop.verdict == NOT_RUN]
    why = str(record.result.get("why_not") or "") if not engines else next(iter(idle), "")
    more = sentence(why) or "They were built on this GPU."
    return Step("See what keeps engines from running here", "python -m pipeline doctor", more)


def _to_a_gpu(context: Context) -> Section:
    unpacking = unpack_command(f"{context.recipe.name}.bundle.tar")
    there = (
        f"It takes all that is needed along. There, unpack it (<code>{text(unpacking)}</code>) and run the command "
        "that this prints: it builds, verifies and times the engines."
    )
    return Section("Next step", f"Take it to a GPU: {command(make(context, 'bundle'))}. {there}")


def _more_images(situation: Situation) -> Step:
    context, parity, verify = situation.context, situation.parity, situation.verify
    wanted = max((hop.images_to_decide or 0 for hop in parity.hops), default=0)
    here, most = max(hop.images for hop in parity.hops), context.recipe.verify.max_images
    title = f"Bring about {count(wanted, 'test image')}, here were {here:,}" if wanted else "Bring more test images"
    found = verify.result if verify is not None else {}
    if here + found.get("images_left", 0) >= wanted > most:
        title = f"Let about {count(wanted, 'test image')} count, here were {here:,} of them"
    elif "images_in_all" in found:
        title += f" (about {count(found['images_in_all'], 'image')} in all give as many)"
    if wanted > most:
        line = make_with(context, [f"verify.max_images={wanted}"], "run", verify)
        return Step(title, line, f"The recipe takes at most {most:,}.")
    return Step(title, make(context, "run", verify), "What passed serves meanwhile.")
