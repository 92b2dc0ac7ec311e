"""The engines of a recipe: the ONNX file that each is built from, its batch sizes, its file, and which are there."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath
from typing import Any, cast

from export.tensorrt.sidecar import PRECISIONS, BatchProfile, Precision
from pipeline.artifacts.paths import ENGINES, ONNX, TENSORRT8, Artifacts
from pipeline.recipe.schema import Build, Profile


def profiles(settings: Build) -> dict[str | None, BatchProfile]:
    """The batch sizes of the engines of each precision by variant; None is the name where there are none."""
    named: Mapping[Any, Profile] = settings.variants or {None: settings.profile}
    return {name: BatchProfile(**asdict(profile)) for name, profile in named.items()}


def engine_source(precision: str, strongly_typed: bool) -> str:
    """The ONNX file that an engine is built from; what is not strongly typed is TensorRT 8.6.

    That of TensorRT 8.6 is there only where the recipe says ``quantize.tensorrt8``.
    """
    return ONNX[precision] if strongly_typed else TENSORRT8.get(precision, ONNX[precision])


def engine_sources(artifacts: Artifacts, precision: str) -> list[str]:
    """The ONNX files that are there of those that engines of a precision are built from, whatever TensorRT does it."""
    names = dict.fromkeys(engine_source(precision, strongly_typed) for strongly_typed in (True, False))
    return [name for name in names if artifacts.has(name)]


def engines(artifacts: Artifacts) -> list[str]:
    """Names of the plans ``build/<flavour>/<precision>[-<variant>].plan`` that are there; by flavour, FP32 first.

    Raises:
        UndeclaredError: plans and their sidecars are not both declared.
    """
    names = [name for pattern in ENGINES for name in artifacts.matching(pattern) if name.endswith(".plan")]
    plans = [name for name in names if plan_precision(name) in PRECISIONS]
    return sorted(plans, key=lambda name: (plan_flavour(name), PRECISIONS.index(plan_precision(name)), name))


def plan_flavour(plan: str) -> str:
    """``build/<flavour>/<precision>[-<variant>].plan``, of a plan that `engines` lists."""
    return PurePath(plan).parent.name


def plan_name(precision: str, variant: str | None) -> str:
    """The file of an engine: ``<precision>[-<variant>].plan``."""
    return f"{precision}-{variant}.plan" if variant else f"{precision}.plan"


def plan_variant(plan: str | PurePath) -> str | None:
    """``<precision>[-<variant>].plan``."""
    return PurePath(plan).stem.partition("-")[2] or None


def plan_precision(plan: str | PurePath) -> Precision:
    """``<precision>[-<variant>].plan``, of a plan that `engines` lists."""
    return cast(Precision, PurePath(plan).stem.partition("-")[0])
