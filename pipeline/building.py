"""The build stage: TensorRT engines, by whichever TensorRT this machine can build with."""

from __future__ import annotations

import logging
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

from export.capabilities import TensorRT
from export.engine import BuildOptions, build_engine
from export.errors import ExportError
from export.sidecar import read_sidecar, sidecar_path
from pipeline.command_line import pipeline_command, recipe_options
from pipeline.environment import choose_tensorrt, why_not_here
from pipeline.errors import PipelineError
from pipeline.files import sha256_file
from pipeline.layout import TENSORRT8, engine_source, engine_sources, engines, plan_name
from pipeline.progress import progress_bar
from pipeline.recipe import Build
from pipeline.stage import Context
from pipeline.words import listed

log = logging.getLogger(__name__)


def build_engines(context: Context, folder: Path) -> dict[str, Any]:
    """Build an engine for each precision and variant of the recipe, with its sidecar.

    It goes into ``<flavour>/<precision>.plan``, or ``<flavour>/<precision>-<variant>.plan`` where there are variants.

    Engines of another flavour that were built from the same ONNX files (on another machine) are kept. Without any
    TensorRT nothing is built; the reason is recorded and the rest of the chain goes on.

    Raises:
        ExportError: TensorRT is there and refused.
        PipelineError: TensorRT 8.6 is there, and its ONNX files are not.
    """
    settings = context.recipe.build
    trt, why = choose_tensorrt(settings.flavour)
    kept = _keep_engines(context, folder, except_flavour=trt.flavour if trt else None)
    if trt is None:
        log.warning("no engine is built here. %s", why)
        if kept:
            log.info("  kept, as they were built from the same ONNX files: %s", listed(kept))
        return {"built": {}, "kept": kept, "why_not": why}
    _check_sources(context, trt)
    not_here = why_not_here(trt, settings.targets)
    if not_here:
        log.warning("%s", not_here)
    options = build_options(settings)
    wanted = [(precision, *named) for precision in settings.precisions for named in settings.profiles.items()]
    built: dict[str, Any] = {}
    for number, (precision, variant, profile) in enumerate(wanted, 1):
        plan = folder / trt.flavour / plan_name(precision, variant)
        name = f"{trt.flavour}/{plan.stem}"
        with progress_bar(desc=f"  {name} ({number} of {len(wanted)})", unit="step", leave=False) as bar:

            def advance(phase: str, step: int, steps: int, bar: Any = bar) -> None:
                bar.set_postfix_str(f"{phase} {step}/{steps}")

            sidecar = build_engine(
                context.root / engine_source(precision, trt.strongly_typed),
                plan,
                precision=precision,
                profile=profile,
                trt=trt,
                options=options,
                variant=variant,
                progress=advance,
            )
        built[name] = {"bytes": sidecar.plan_bytes, "seconds": sidecar.seconds}
        log.info("  %s.plan: %.1f MB in %.1f s", name, sidecar.plan_bytes / 1e6, sidecar.seconds)
    return {"built": built, "kept": kept, **({"not_here": not_here} if not_here else {})}


def _check_sources(context: Context, trt: TensorRT) -> None:
    """Refuse to start where a file that an engine is to be built from was not asked of the quantize stage.

    Raises:
        PipelineError: with the key and the command that make it.
    """
    sources = (engine_source(precision, trt.strongly_typed) for precision in context.recipe.build.precisions)
    missing = [name for name in sources if name in TENSORRT8.values() and not (context.root / name).is_file()]
    if missing:
        command = pipeline_command(
            *("quantize", "-c", context.recipe_path),
            *recipe_options([*context.overrides, "quantize.tensorrt8=true"], context.artifacts),
        )
        raise PipelineError(
            f"Expected {' and '.join(missing)} to build with {trt.flavour} {trt.version}, whose ONNX parser is for "
            "opset 17. Received: no such file. Set quantize.tensorrt8: true in the recipe, or --set it each time, and "
            f"run `{command}` where the calibration images are."
        )


def bytes_per_weight(context: Context) -> int:
    """What one weight of the model takes in all engines together."""
    settings = context.recipe.build
    if choose_tensorrt(settings.flavour)[0] is None:
        return 0
    widths = {"fp32": 4, "fp16": 2, "int8": 1}
    return sum(widths[precision] for precision in settings.precisions) * len(settings.profiles)


def build_options(settings: Build) -> BuildOptions:
    """The recipe's options of the build, those of the same name."""
    names = [field.name for field in fields(BuildOptions)]
    return BuildOptions(**{name: getattr(settings, name) for name in names})


def _keep_engines(context: Context, folder: Path, except_flavour: str | None) -> list[str]:
    kept = []
    for plan in engines(context.root):
        flavour = plan.parent.name
        if flavour == except_flavour:
            continue
        try:
            sidecar = read_sidecar(plan)
        except ExportError as error:
            log.warning("left out an engine: %s", error)
            continue
        sources = engine_sources(context.root, sidecar.precision)
        if sidecar.onnx_sha256 not in {sha256_file(context.root / source) for source in sources}:
            continue
        target = folder / flavour
        target.mkdir(exist_ok=True)
        for path in (plan, sidecar_path(plan)):
            shutil.copy2(path, target / path.name)
        kept.append(f"{flavour}/{plan.name}")
    return kept
