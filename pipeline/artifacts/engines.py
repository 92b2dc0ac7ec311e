"""A recipe's engines: names of their files, their ONNX sources and their batch sizes."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath
from typing import Any, cast

from export.tensorrt.sidecar import PRECISIONS, BatchProfile, Precision
from pipeline.artifacts.paths import ENGINES, ONNX, TENSORRT8, Artifacts
from pipeline.recipe.schema import Build, Profile


def profiles(settings: Build) -> dict[str | None, BatchProfile]:
    """Return the batch sizes by variant; the key is None where the recipe has no variants."""
    named: Mapping[Any, Profile] = settings.variants or {None: settings.profile}
    return {name: BatchProfile(**asdict(profile)) for name, profile in named.items()}


def engine_source(precision: str, strongly_typed: bool) -> str:
    """Return the name of the ONNX file that an engine is built from.

    Args:
        precision: "fp32", "fp16" or "int8".
        strongly_typed: Whether TensorRT takes a strongly typed network; False for 8.6, whose file exists only with
            ``quantize.tensorrt8``.
    """
    return ONNX[precision] if strongly_typed else TENSORRT8.get(precision, ONNX[precision])


def engine_sources(artifacts: Artifacts, precision: str) -> list[str]:
    """List the existing ONNX files that engines of a precision are built from, by any version of TensorRT."""
    names = dict.fromkeys(engine_source(precision, strongly_typed) for strongly_typed in (True, False))
    return [name for name in names if artifacts.has(name)]


def engines(artifacts: Artifacts) -> list[str]:
    """List the existing plans ``build/<flavour>/<precision>[-<variant>].plan``, by flavour, FP32 first.

    Raises:
        UndeclaredError: Plans and their sidecars are not both declared.
    """
    names = [name for pattern in ENGINES for name in artifacts.matching(pattern)]
    plans = [name for name in names if name.endswith(".plan") and plan_precision(name) in PRECISIONS]
    return sorted(plans, key=lambda name: (plan_flavour(name), PRECISIONS.index(plan_precision(name)), name))


def plan_flavour(plan: str) -> str:
    """Return the flavour, "tensorrt" or "rtx", of a plan that `engines` lists."""
    return PurePath(plan).parent.name


def plan_name(precision: str, variant: str | None) -> str:
    """Return the name of an engine's file: ``<precision>[-<variant>].plan``."""
    return f"{precision}-{variant}.plan" if variant else f"{precision}.plan"


def plan_variant(plan: str | PurePath) -> str | None:
    """Return the variant in ``<precision>[-<variant>].plan``; None without one."""
    return PurePath(plan).stem.partition("-")[2] or None


def plan_precision(plan: str | PurePath) -> Precision:
    """Return the precision in ``<precision>[-<variant>].plan``, of a plan that `engines` lists."""
    return cast(Precision, PurePath(plan).stem.partition("-")[0])
