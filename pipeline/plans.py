"""The engines of a recipe: the ONNX file that each is built from, its batch sizes, its file, and which are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from export.sidecar import PRECISIONS, BatchProfile, Precision
from pipeline.layout import ONNX, TENSORRT8
from pipeline.recipe import Build, Profile


def profiles(settings: Build) -> dict[str | None, BatchProfile]:
    """The batch sizes of the engines of each precision by variant; None is the name where there are none."""
    named: Mapping[Any, Profile] = settings.variants or {None: settings.profile}
    return {name: BatchProfile(**asdict(profile)) for name, profile in named.items()}


def engine_source(precision: str, strongly_typed: bool) -> str:
    """The ONNX file that an engine is built from; what is not strongly typed is TensorRT 8.6.

    That of TensorRT 8.6 is there only where the recipe says ``quantize.tensorrt8``.
    """
    return ONNX[precision] if strongly_typed else TENSORRT8.get(precision, ONNX[precision])


def engine_sources(root: Path, precision: str) -> list[str]:
    """The ONNX files that are there of those that engines of a precision are built from, whatever TensorRT does it."""
    names = dict.fromkeys(engine_source(precision, strongly_typed) for strongly_typed in (True, False))
    return [name for name in names if (root / name).is_file()]


def engines(root: Path) -> list[Path]:
    """Every plan below ``build/<flavour>/`` of a recipe's artifacts that is named by a precision; FP32 first."""
    plans = [plan for plan in root.glob("build/*/*.plan") if plan_precision(plan) in PRECISIONS]
    return sorted(plans, key=lambda plan: (plan.parent.name, PRECISIONS.index(plan_precision(plan)), plan.name))


def plan_name(precision: str, variant: str | None) -> str:
    """The file of an engine: ``<precision>[-<variant>].plan``."""
    return f"{precision}-{variant}.plan" if variant else f"{precision}.plan"


def plan_variant(plan: Path) -> str | None:
    """``<precision>[-<variant>].plan``."""
    return plan.stem.partition("-")[2] or None


def plan_precision(plan: Path) -> Precision:
    """``<precision>[-<variant>].plan``, of a plan that `engines` lists."""
    return cast(Precision, plan.stem.partition("-")[0])
