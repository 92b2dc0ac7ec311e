"""The report's next step: what a reader does with this verdict, with the command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from pipeline.html import Section, command, text
from pipeline.manifest import Manifest
from pipeline.parity_report import FAIL, INCONCLUSIVE, NOT_RUN, NOT_VERIFIED, Hop, ParityReport
from pipeline.report_headline import short_name
from pipeline.report_recipe import make
from pipeline.report_standing import Standing
from pipeline.stage import Context
from pipeline.words import count, sentence

ENGINE_CHECK = ("python", "-m", "pipeline", "engine", "check")


def next_step(
    context: Context, stands: Standing, parity: ParityReport, engines: Mapping[str, str], verify: Manifest | None
) -> Section:
    """The section.

    Args:
        context: recipe, overrides, artifacts, for the command.
        stands: whether the verdict still holds.
        parity: the verdict.
        engines: verdict on each engine that is there, as it is now, by file.
        verify: the record of the verify stage.
    """
    if stands.broken:
        return _step(
            "Judge the files as they are now", make(context, "run", verify), "What is up to date does not run."
        )
    failed = [hop for hop in parity.hops if hop.verdict == FAIL]
    if failed:
        return _step(*_after_a_failure(context, failed[0], verify))
    if parity.verdict == FAIL:
        why = next((hop.why for hop in parity.hops if hop.why), "")
        return _step("Run it on a machine that can run the files", make(context, "bundle"), sentence(why))
    if parity.verdict == INCONCLUSIVE:
        return _step(*_more_images(context, parity, verify))
    if NOT_VERIFIED in engines.values():
        return _step("Verify the engines that came since", make(context, "verify", verify))
    if verify is not None and verify.environment.get("gpu") and (not engines or NOT_RUN in engines.values()):
        return _step("Build engines that this GPU runs", f"{context.command('build', 'python')} --force")
    if not engines or NOT_RUN in engines.values():
        archive = shlex.quote(f"{context.recipe.name}.bundle.tar")
        there = (
            "It takes all that is needed along. There, unpack it (<code>python -m pipeline unpack "
            f"{text(archive)}</code>) and run the command that this prints: it builds, verifies and times the engines."
        )
        return Section("Next step", f"Take it to a GPU: {command(make(context, 'bundle'))}. {there}")
    photos = f"{context.command('infer', 'python')} photos/ -o predictions.csv"
    return _step("Classify your own pictures", photos, "The fastest file that passed answers.")


def _step(title: str, line: str, more: str = "") -> Section:
    return Section("Next step", f"{title}: {command(line)}. {text(more)}".strip())


def _after_a_failure(context: Context, hop: Hop, verify: Manifest | None) -> tuple[str, str, str]:
    """What mends the first comparison that failed: the title, the command and why."""
    name = short_name(hop.candidate)
    said = sentence(f"{name}: {hop.why}")
    if hop.backend == "tensorrt":
        plan = (context.root / hop.candidate).as_posix()
        return f"Look at what was built for {name}", shlex.join([*ENGINE_CHECK, plan]), said
    kept, kept_fp32 = context.recipe.quantize.max_kept, context.recipe.quantize.max_kept_fp32
    if hop.precision == "int8" and kept < 1:
        more = min(1.0, 3 * kept or 0.1)
        return (
            "Keep more layers in FP16",
            f"{with_override(context, f'quantize.max_kept={more:g}')}",
            (f"{said} More calibration images help too; section Layers says what each layer costs."),
        )
    if hop.precision == "fp16" and kept_fp32 < 1:
        return "Keep more layers in FP32", with_override(context, "quantize.max_kept_fp32=1"), said
    if hop.precision in ("int8", "fp16"):
        asked = f"verify.thresholds.{hop.precision}"
        title = f"Bring more calibration images, or ask for less ({asked})"
        return title, make(context, "run", verify), f"{said} All layers may stay in more bits already."
    if context.recipe.verify.thresholds.fp32.relative_error == "auto":
        again = f"{context.command('export', 'python')} --force"
        return "Export it again", again, f"{said} Where that fails too, the export is wrong: please report it."
    line = with_override(context, "verify.thresholds.fp32.relative_error=auto")
    return "Let the model say how much rounding moves it", line, f"{said} Where that fails too, the export is wrong."


def with_override(context: Context, override: str) -> str:
    """The command line of the whole chain with one more override."""
    changed = Context(context.recipe, context.recipe_path, context.artifacts, [*context.overrides, override])
    return make(changed, "run")


def _more_images(context: Context, parity: ParityReport, verify: Manifest | None) -> tuple[str, str, str]:
    wanted = max((hop.images_to_decide or 0 for hop in parity.hops), default=0)
    here, most = max(hop.images for hop in parity.hops), context.recipe.verify.max_images
    title = f"Bring about {count(wanted, 'test image')}, here were {here:,}" if wanted else "Bring more test images"
    found = verify.result if verify is not None else {}
    if here + found.get("images_left", 0) >= wanted > most:
        title = f"Let about {count(wanted, 'test image')} count, here were {here:,} of them"
    elif "images_in_all" in found:
        title += f" (about {count(found['images_in_all'], 'image')} in all give as many)"
    if wanted > most:
        return title, with_override(context, f"verify.max_images={wanted}"), f"The recipe takes at most {most:,}."
    return title, make(context, "run", verify), "What passed serves meanwhile."
