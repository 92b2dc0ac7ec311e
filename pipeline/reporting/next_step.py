"""The report's next step: what to do after this verdict, with the command."""

import shlex
from collections.abc import Mapping

from export.words import count, listed, sentence
from pipeline.artifacts.manifest import read_result, read_stage
from pipeline.artifacts.parity_report import FAIL, INCONCLUSIVE, NOT_RUN, NOT_VERIFIED
from pipeline.artifacts.results import Built, Verified
from pipeline.recipe.published_weights import published_backbones
from pipeline.recipe.schema import IMAGENET
from pipeline.reporting.failures import Situation, Step, after_failure
from pipeline.reporting.hints import TITLE as HINTS
from pipeline.reporting.html import Section, section
from pipeline.reporting.sections import make, make_with
from pipeline.reporting.validity import Validity, outdated_results
from pipeline.terminal.command_line import unpack_command
from pipeline.verification.checks.doubts import ITSELF

UP_TO_DATE = "Stages that are up to date do not run."
FEW_EPOCHS, ENOUGH_EPOCHS = 10, 30


def next_step(situation: Situation, stands: Validity, engines: Mapping[str, str]) -> Section:
    """Make the section.

    Args:
        situation: what the advice depends on.
        stands: whether the verdict still holds.
        engines: verdict on each engine as it is now, by file.

    Raises:
        ProjectError: a record of the quantize stage is missing or damaged.
    """
    step = _step(situation, stands, engines)
    unpack = ""
    if step is None:
        step = Step("Take it to a GPU", make(situation.invocation, "bundle"))
        unpack = unpack_command(f"{situation.recipe.name}.bundle.tar")
    return section("Next step", "next.html.j2", step=step, unpack=unpack)


def _step(situation: Situation, stands: Validity, engines: Mapping[str, str]) -> Step | None:
    """What to do; None: take the files to a GPU.

    Reasons why the verdict is void come first, then reasons why it means little, then missed thresholds.
    """
    parity, card, verify = situation.parity, situation.card, situation.verify
    doubts = [warning for warning in parity.warnings if warning not in card.deviations]
    of_model = [doubt for doubt in doubts if doubt in card.doubts or doubt.startswith(ITSELF)]
    again = make(situation.invocation, "run", verify)
    if stands.broken:
        return Step("Verify the files as they are now", again, UP_TO_DATE)
    if stale := outdated_results(situation.artifacts, situation.recipe):
        return Step("Run the stages that are out of date", again, sentence(listed(stale, most=3)))
    if of_model:
        return _better_model(situation, of_model[0])
    if any(hop.verdict == FAIL for hop in parity.hops):
        if any(hint.cause != "unknown" and hint.remedy for hint in situation.hints):
            return Step(f"Follow the advice of {HINTS}, then run again", again, UP_TO_DATE)
        return after_failure(situation)
    if parity.verdict == FAIL:
        why = next((hop.why for hop in parity.hops if hop.why), "")
        return Step("Use a machine that can run the files", make(situation.invocation, "bundle"), sentence(why))
    if parity.verdict == INCONCLUSIVE:
        return _more_images(situation)
    if doubts and situation.recipe.model.head != "published":  # a user's images have few of its 1,000 classes
        return Step("Add test images of the classes that have none", again, doubts[0])
    return _onward(situation, engines)


def _better_model(situation: Situation, doubt: str) -> Step:
    """What may improve the Keras model; parity with a model that does not classify proves nothing."""
    recipe, invocation = situation.recipe, situation.invocation
    if recipe.model.path is not None:
        line = shlex.join(["python", "-m", "pipeline", "inspect", recipe.model.path])
        return Step("Check what the model expects", line, doubt)
    if recipe.model.finished:
        return Step("Check preprocessing and classes in the recipe", invocation.command("config", "python"), doubt)
    if recipe.model.weights is None and recipe.model.backbone in published_backbones():
        return Step("Start from pretrained weights", situation.changed(f"model.weights={IMAGENET}"), doubt)
    fine_tune = recipe.train.fine_tune.epochs
    if fine_tune < ENOUGH_EPOCHS:
        epochs = min(ENOUGH_EPOCHS, max(FEW_EPOCHS, 3 * fine_tune))
        return Step("Train longer", situation.changed(f"train.fine_tune.epochs={epochs}"), doubt)
    return Step("Add more training images", make(invocation, "run", situation.verify), doubt)


def _onward(situation: Situation, engines: Mapping[str, str]) -> Step | None:
    """What to do after a pass; None: take the files to a GPU."""
    invocation, verify = situation.invocation, situation.verify
    if NOT_VERIFIED in engines.values():
        return Step("Verify the new engines", make(invocation, "verify", verify))
    if not engines or NOT_RUN in engines.values():
        gpu = verify.environment.get("gpu") if verify is not None else None
        return _build_here(situation, engines, gpu) if gpu else None
    line = f"{invocation.command('infer', 'python')} photos/ -o predictions.csv"
    return Step("Classify your own pictures", line, "The fastest file that passed is used.")


def _build_here(situation: Situation, engines: Mapping[str, str], gpu: str) -> Step:
    """On a GPU without an engine that runs: build engines, unless the build stage ran on it already."""
    record = read_stage(situation.artifacts, "build")
    if record is None or record.environment.get("gpu") != gpu:
        return Step("Build engines that this GPU runs", f"{situation.invocation.command('build', 'python')} --force")
    not_run = (hop.why for hop in situation.parity.hops if hop.verdict == NOT_RUN and not hop.lacks_reference)
    why = next(not_run, "") if engines else read_result(record, Built).why_not
    more = sentence(why) or "They were built on this GPU."
    return Step("Find out why engines do not run here", "python -m pipeline doctor", more)


def _more_images(situation: Situation) -> Step:
    invocation, parity, verify = situation.invocation, situation.parity, situation.verify
    needed = max((hop.images_to_decide or 0 for hop in parity.hops), default=0)
    used, most = max(hop.images for hop in parity.hops), situation.recipe.verify.max_images
    title = f"Add test images: about {needed:,} are needed, {used:,} were used" if needed else "Add more test images"
    verified = read_result(verify, Verified) if verify is not None else None
    unused, in_all = (verified.images_left, verified.images_in_all) if verified else (None, None)
    if used + (unused or 0) >= needed > most:
        title = f"Use about {count(needed, 'test image')} instead of {used:,}"
    elif in_all is not None:
        title += f" (about {count(in_all, 'image')} in all give as many)"
    if needed > most:
        line = make_with(invocation, [f"verify.max_images={needed}"], "run", verify)
        return Step(title, line, f"The recipe takes at most {most:,}.")
    return Step(title, make(invocation, "run", verify), "Files that passed can be used until then.")
