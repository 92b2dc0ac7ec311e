"""The report's next step: what a reader does with this verdict, with the command."""

import shlex
from collections.abc import Mapping

from export.words import count, listed, sentence
from pipeline.artifacts.manifest import read_result, read_stage
from pipeline.artifacts.parity_report import FAIL, INCONCLUSIVE, NOT_RUN, NOT_VERIFIED
from pipeline.artifacts.results import Built, Verified
from pipeline.recipe.published_weights import published_backbones
from pipeline.recipe.schema import IMAGENET
from pipeline.reporting.failures import Situation, Step, after_failure
from pipeline.reporting.html import Section, section
from pipeline.reporting.sections import make, make_with
from pipeline.reporting.validity import Standing, behind
from pipeline.terminal.command_line import unpack_command
from pipeline.verification.doubts import ITSELF

FEW_EPOCHS, ENOUGH_EPOCHS = 10, 30


def next_step(situation: Situation, stands: Standing, engines: Mapping[str, str]) -> Section:
    """The section.

    Args:
        situation: what the advice depends on.
        stands: whether the verdict still holds.
        engines: verdict on each engine that is there, as it is now, by file.

    Raises:
        ProjectError: a record of the quantize stage is missing or damaged.
    """
    step = _step(situation, stands, engines)
    unpack = ""
    if step is None:
        step = Step("Take it to a GPU", make(situation.invocation, "bundle"))
        unpack = unpack_command(f"{situation.recipe.name}.bundle.tar")
    return section("Next step", "next.html.j2", step=step, unpack=unpack)


def _step(situation: Situation, stands: Standing, engines: Mapping[str, str]) -> Step | None:
    """What to do; None: take the files to a GPU.

    What makes the verdict void comes first, then what makes it worth little, then what was missed; only where all that
    is well are the files taken further.
    """
    parity, card, verify = situation.parity, situation.card, situation.verify
    doubts = [warning for warning in parity.warnings if warning not in card.deviations]
    of_model = [doubt for doubt in doubts if doubt in card.doubts or doubt.startswith(ITSELF)]
    again = make(situation.invocation, "run", verify)
    if stands.broken:
        return Step("Judge the files as they are now", again, "What is up to date does not run.")
    if stale := behind(situation.artifacts, situation.recipe):
        return Step("Run what is not up to date", again, sentence(listed(stale, most=3)))
    if of_model:
        return _better_model(situation, of_model[0])
    if any(hop.verdict == FAIL for hop in parity.hops):
        return after_failure(situation)
    if parity.verdict == FAIL:
        why = next((hop.why for hop in parity.hops if hop.why), "")
        bundle = make(situation.invocation, "bundle")
        return Step("Run it on a machine that can run the files", bundle, sentence(why))
    if parity.verdict == INCONCLUSIVE:
        return _more_images(situation)
    if doubts and situation.recipe.model.head != "published":  # of its 1,000 classes a user has a few
        return Step("Bring test images of the classes that have none", again, doubts[0])
    return _onward(situation, engines)


def _better_model(situation: Situation, doubt: str) -> Step:
    """What may give a model that knows its classes; comparing its copies with it proves nothing before."""
    recipe, invocation = situation.recipe, situation.invocation
    if recipe.model.path is not None:
        line = shlex.join(["python", "-m", "pipeline", "inspect", recipe.model.path])
        return Step("See what the model expects", line, doubt)
    if recipe.model.finished:
        return Step(
            "See what the recipe says of preprocessing and classes", invocation.command("config", "python"), doubt
        )
    if recipe.model.weights is None and recipe.model.backbone in published_backbones():
        return Step("Start from weights that know pictures", situation.changed(f"model.weights={IMAGENET}"), doubt)
    fine_tune = recipe.train.fine_tune.epochs
    if fine_tune < ENOUGH_EPOCHS:
        epochs = min(ENOUGH_EPOCHS, max(FEW_EPOCHS, 3 * fine_tune))
        return Step("Train longer", situation.changed(f"train.fine_tune.epochs={epochs}"), doubt)
    return Step("Bring more training images", make(invocation, "run", situation.verify), doubt)


def _onward(situation: Situation, engines: Mapping[str, str]) -> Step | None:
    """After a pass; None: to a GPU."""
    invocation, verify = situation.invocation, situation.verify
    if NOT_VERIFIED in engines.values():
        return Step("Verify the engines that came since", make(invocation, "verify", verify))
    if not engines or NOT_RUN in engines.values():
        gpu = verify.environment.get("gpu") if verify is not None else None
        return _build_here(situation, engines, gpu) if gpu else None
    photos = f"{invocation.command('infer', 'python')} photos/ -o predictions.csv"
    return Step("Classify your own pictures", photos, "The fastest file that passed answers.")


def _build_here(situation: Situation, engines: Mapping[str, str], gpu: str) -> Step:
    """On a GPU without an engine that runs: build, unless that was tried on it."""
    record = read_stage(situation.artifacts, "build")
    if record is None or record.environment.get("gpu") != gpu:
        return Step("Build engines that this GPU runs", f"{situation.invocation.command('build', 'python')} --force")
    idle = [hop.why for hop in situation.parity.hops if hop.verdict == NOT_RUN]
    why = read_result(record, Built).why_not if not engines else next(iter(idle), "")
    more = sentence(why) or "They were built on this GPU."
    return Step("See what keeps engines from running here", "python -m pipeline doctor", more)


def _more_images(situation: Situation) -> Step:
    invocation, parity, verify = situation.invocation, situation.parity, situation.verify
    wanted = max((hop.images_to_decide or 0 for hop in parity.hops), default=0)
    here, most = max(hop.images for hop in parity.hops), situation.recipe.verify.max_images
    title = f"Bring about {count(wanted, 'test image')}, here were {here:,}" if wanted else "Bring more test images"
    found = read_result(verify, Verified) if verify is not None else None
    left, in_all = (found.images_left, found.images_in_all) if found else (None, None)
    if here + (left or 0) >= wanted > most:
        title = f"Let about {count(wanted, 'test image')} count, here were {here:,} of them"
    elif in_all is not None:
        title += f" (about {count(in_all, 'image')} in all give as many)"
    if wanted > most:
        line = make_with(invocation, [f"verify.max_images={wanted}"], "run", verify)
        return Step(title, line, f"The recipe takes at most {most:,}.")
    return Step(title, make(invocation, "run", verify), "What passed serves meanwhile.")
