"""The build stage: TensorRT engines, by whichever TensorRT this machine can build with."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from export.errors import ProjectError
from export.tensorrt.build import build_engine
from export.tensorrt.library import TensorRT
from export.tensorrt.options import BuildOptions
from export.tensorrt.sidecar import read_sidecar, sidecar_path
from export.words import listed
from pipeline.artifacts.engines import engine_source, engine_sources, engines, plan_flavour, plan_name, profiles
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.inputs import Consulted, Inputs
from pipeline.artifacts.paths import ENGINES, TENSORRT8
from pipeline.artifacts.results import Built, BuiltEngine
from pipeline.recipe.schema import Build, Recipe
from pipeline.stages.declared import ONNX_FILES
from pipeline.terminal.command_line import COMMAND, CommandNeededError
from pipeline.terminal.console import progress_bar
from pipeline.workflow.environment import choose_tensorrt, explain_no_gpu, machine_environment
from pipeline.workflow.stage import Stage

log = logging.getLogger(__name__)


def run(inputs: Inputs, settings: Recipe, out: Path) -> Built:
    """Build an engine for each precision and variant of the recipe, with its sidecar.

    It is written to ``<flavour>/<precision>.plan``, or ``<flavour>/<precision>-<variant>.plan`` if there are variants.

    Engines of another flavour that were built from the same ONNX files (on another machine) are kept. Without any
    TensorRT nothing is built; the reason is recorded and the chain continues.

    Raises:
        ProjectError: TensorRT is installed and refused to build.
        ProjectError: TensorRT 8.6 is installed, and its ONNX files are missing.
    """
    section = settings.build
    trt, why = choose_tensorrt(section.flavour)
    kept = _keep_engines(inputs, out, except_flavour=trt.flavour if trt else None)
    if trt is None:
        log.warning("no engine is built here. %s", why)
        if kept:
            log.info("  kept, as they were built from the same ONNX files: %s", listed(kept))
        return Built({}, tuple(kept), why)
    _check_sources(inputs, section.precisions, trt)
    if not_here := explain_no_gpu(trt, section.targets):
        log.warning("%s", not_here)
    options = build_options(section)
    plans = [(precision, *named) for precision in section.precisions for named in profiles(section).items()]
    built: dict[str, BuiltEngine] = {}
    for number, (precision, variant, profile) in enumerate(plans, 1):
        plan = out / trt.flavour / plan_name(precision, variant)
        name = f"{trt.flavour}/{plan.stem}"
        with progress_bar(desc=f"  {name} ({number} of {len(plans)})", unit="step", leave=False) as bar:

            def advance(phase: str, step: int, steps: int, bar: Any = bar) -> None:
                bar.set_postfix_str(f"{phase} {step}/{steps}")

            sidecar = build_engine(
                inputs.path(engine_source(precision, trt.strongly_typed)),
                plan,
                precision=precision,
                profile=profile,
                trt=trt,
                options=options,
                variant=variant,
                progress=advance,
            )
        built[name] = BuiltEngine(sidecar.plan_bytes, sidecar.seconds)
        log.info("  %s.plan: %.1f MB in %.1f s", name, sidecar.plan_bytes / 1e6, sidecar.seconds)
    return Built(built, tuple(kept), not_here=not_here)


def _check_sources(inputs: Inputs, precisions: Sequence[str], trt: TensorRT) -> None:
    """Refuse to start without an ONNX file for TensorRT 8.6 that an engine is built from.

    Raises:
        ProjectError: a file is missing; with the key and the command that make it.
    """
    sources = (engine_source(precision, trt.strongly_typed) for precision in precisions)
    if missing := [name for name in sources if name in TENSORRT8.values() and not inputs.has(name)]:
        raise CommandNeededError(
            f"Expected {' and '.join(missing)} to build with {trt.flavour} {trt.version}, whose ONNX parser is for "
            "opset 17. Received: no such file. Set quantize.tensorrt8: true in the recipe, or --set it each time, and "
            f"run `{COMMAND}` where the calibration images are.",
            *("quantize", "quantize.tensorrt8=true"),
        )


def bytes_per_weight(recipe: Recipe) -> int:
    """Return how many bytes one weight of the model takes in all engines together."""
    if choose_tensorrt(recipe.build.flavour)[0] is None:
        return 0
    widths = {"fp32": 4, "fp16": 2, "int8": 1}
    return sum(widths[precision] for precision in recipe.build.precisions) * len(profiles(recipe.build))


def build_options(settings: Build) -> BuildOptions:
    """Return the build options that the recipe's section holds under the same names."""
    return BuildOptions(**{field.name: getattr(settings, field.name) for field in fields(BuildOptions)})


def _keep_engines(inputs: Inputs, out: Path, except_flavour: str | None) -> list[str]:
    kept = []
    for name in engines(inputs):
        plan, flavour = inputs.path(name), plan_flavour(name)
        if flavour == except_flavour:
            continue
        try:
            sidecar = read_sidecar(plan)
        except ProjectError as error:
            log.warning("left out an engine: %s", error)
            continue
        sources = engine_sources(inputs, sidecar.precision)
        if sidecar.onnx_sha256 not in {sha256_file(inputs.path(source)) for source in sources}:
            continue
        (out / flavour).mkdir(exist_ok=True)
        for path in (plan, sidecar_path(plan)):
            shutil.copy2(path, out / flavour / path.name)
        kept.append(f"{flavour}/{plan.name}")
    return kept


STAGE = Stage(
    "build",
    inputs=(*ONNX_FILES, *map(Consulted, ENGINES)),  # of another flavour, to keep
    keys=("build",),
    run=run,
    result=Built,
    environment=lambda settings: machine_environment(settings.build.flavour),
    bytes_per_weight=bytes_per_weight,
)
