"""The stages between training and verification: export, quantize, build. Each hands files to the export package."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.capabilities import TensorRT, find_tensorrt, why_missing
from export.driver import driver_status
from export.engine import BatchProfile, build_engine
from export.errors import ExportError
from export.sidecar import read_sidecar, sidecar_path
from pipeline.data import DataMissingError, Pixels, check_split_sizes
from pipeline.files import sha256_file, write_atomic, write_json
from pipeline.layout import ONNX
from pipeline.progress import progress_bar
from pipeline.stage import Context
from pipeline.training import ModelCard

log = logging.getLogger(__name__)


def export_model(context: Context, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx`` (uint8 NHWC in; logits and probabilities out) and ``summary.json``."""
    from export.keras_to_onnx import export_keras
    from pipeline.loading import load_classifier

    trained = context.folder("train")
    card = ModelCard.read(trained / "model.json")
    model = load_classifier(trained / "model.keras", card.allow)
    summary = export_keras(
        model,
        folder / "model.onnx",
        preprocessing=card.preprocessing,
        classes=card.classes,
        opset=context.recipe.export.opset,
        metadata={"recipe": context.recipe.name, "resize": context.recipe.data.resize},
        output=card.output,
    )
    write_json(folder / "summary.json", asdict(summary))
    return {"opset": context.recipe.export.opset, "bytes": (folder / "model.onnx").stat().st_size}


def quantize_model(context: Context, folder: Path) -> dict[str, Any]:
    """Write ``model.fp16.onnx``, ``model.int8.onnx``, ``scales.json`` and ``placement.json``.

    Raises:
        DataError: fewer calibration images than the recipe's minimum, or unreadable ones above its limit.
    """
    from export.calibration import collect_scales
    from export.onnx_file import load_model, save_model
    from export.placement import placement_table, quantizable_tensors
    from export.precision import to_fp16
    from export.quantize import quantize

    settings = context.recipe.quantize
    source = context.folder("export") / "model.onnx"
    card = ModelCard.read(context.folder("train") / "model.json")
    model = load_model(source)
    save_model(to_fp16(model), folder / "model.fp16.onnx")

    check_split_sizes(context.images, {"calibration": settings.min_images})
    samples = context.images.splits["calibration"][: settings.max_images]
    pixels = Pixels(card.size, context.recipe.data.resize, context.recipe.data.max_bad_images)
    batches = (batch for batch, _ in pixels.batches(samples, settings.batch_size, "calibration"))
    scales = collect_scales(
        model,
        batches,
        quantizable_tensors(model),
        model_sha256=sha256_file(source),
        images_sha256=context.images.fingerprint("calibration"),
        preprocessing=card.preprocessing,
    )
    write_atomic(folder / "scales.json", scales.to_json())
    quantized, placements = quantize(model, scales)
    save_model(quantized, folder / "model.int8.onnx")
    write_json(folder / "placement.json", [asdict(row) for row in placements])
    write_json(folder / "images.json", {"calibration": context.images.table("calibration")[: settings.max_images]})
    log.debug("placement of INT8:\n%s", placement_table(placements))
    return {"calibration_images": len(samples) - len(pixels.skipped), **pixels.result()}


def choose_tensorrt(flavour: str) -> tuple[TensorRT | None, str]:
    """The TensorRT to build with here, or None and why.

    ``auto`` takes the full TensorRT where it is installed and a GPU is there, else TensorRT-RTX.
    """
    driver = driver_status()
    wanted = ("tensorrt", "rtx") if flavour == "auto" else (flavour,)
    reasons = []
    for name in wanted:
        trt = find_tensorrt(name)
        if trt is None:
            reasons.append(f"{name}: {why_missing().get(name, 'not installed')}")
        elif not trt.builds_without_gpu and not driver.available:
            reasons.append(f"{name} {trt.version} builds on a GPU only, and there is {driver.reason}")
        else:
            return trt, ""
    return None, "; ".join(reasons)


def build_environment() -> dict[str, Any]:
    """The TensorRT and the GPU of this machine, which decide what an engine is good for."""
    trt, _ = choose_tensorrt("auto")
    return {"tensorrt": f"{trt.flavour} {trt.version}" if trt else None, "gpu": describe_gpu()}


def describe_gpu() -> str | None:
    """Name and compute capability of the first GPU, None without one."""
    devices = driver_status().devices
    return f"{devices[0].name} (compute capability {devices[0].compute_capability})" if devices else None


def build_engines(context: Context, folder: Path) -> dict[str, Any]:
    """Build an engine for each precision of the recipe into ``<flavour>/<precision>.plan`` with its sidecar.

    Engines of another flavour that were built from the same ONNX files (on another machine) are kept. Without any
    TensorRT nothing is built; the reason is recorded and the rest of the chain goes on.

    Raises:
        ExportError: TensorRT is there and refused.
    """
    settings = context.recipe.build
    trt, why = choose_tensorrt(settings.flavour)
    kept = _keep_engines(context, folder, except_flavour=trt.flavour if trt else None)
    if trt is None:
        log.warning("no engine is built here. %s", why)
        return {"built": [], "kept": kept, "why_not": why}
    profile = BatchProfile(settings.profile.min, settings.profile.opt, settings.profile.max)
    built: dict[str, Any] = {}
    for precision in settings.precisions:
        with progress_bar(desc=f"  {trt.flavour} {precision}", unit="step", leave=False) as bar:

            def advance(phase: str, step: int, steps: int, bar: Any = bar) -> None:
                bar.set_postfix_str(f"{phase} {step}/{steps}")

            sidecar = build_engine(
                context.root / ONNX[precision],
                folder / trt.flavour / f"{precision}.plan",
                precision=precision,
                profile=profile,
                trt=trt,
                tf32=settings.tf32,
                workspace_mib=settings.workspace_mib,
                optimization_level=settings.optimization_level,
                targets=settings.targets,
                progress=advance,
            )
        built[f"{trt.flavour}/{precision}"] = {"bytes": sidecar["plan_bytes"], "seconds": sidecar["seconds"]}
        log.info(
            "  %s/%s.plan: %.1f MB in %.1f s", trt.flavour, precision, sidecar["plan_bytes"] / 1e6, sidecar["seconds"]
        )
    return {"built": built, "kept": kept}


def engines(context: Context) -> list[Path]:
    """Every plan of the build stage, below ``build/<flavour>/``; FP32 first, then FP16, then INT8."""
    order = {precision: rank for rank, precision in enumerate(ONNX)}
    plans = context.folder("build").glob("*/*.plan")
    return sorted(plans, key=lambda p: (p.parent.name, order.get(plan_precision(p), len(order)), p.name))


def plan_precision(plan: Path) -> str:
    """``<precision>[-<variant>].plan``."""
    return plan.stem.partition("-")[0]


def check_data_early(context: Context) -> None:
    """Refuse too few images before the first stage spends time; later stages would find out only then."""
    try:
        images = context.images
    except DataMissingError:
        return  # artifacts from another machine: the stages that need the data say so
    recipe = context.recipe
    check_split_sizes(
        images,
        {
            "train": 0 if recipe.model.path else len(images.classes),
            "validation": 0 if recipe.model.path else 1,
            "calibration": recipe.quantize.min_images,
            "test": recipe.verify.min_images,
        },
    )


def _keep_engines(context: Context, folder: Path, except_flavour: str | None) -> list[str]:
    current = {name: sha256_file(context.root / path) for name, path in ONNX.items()}
    kept = []
    for plan in engines(context):
        flavour = plan.parent.name
        if flavour == except_flavour:
            continue
        try:
            sidecar = read_sidecar(plan)
        except ExportError as error:
            log.warning("left out an engine: %s", error)
            continue
        if sidecar["onnx_sha256"] != current.get(sidecar["precision"]):
            continue
        target = folder / flavour
        target.mkdir(exist_ok=True)
        for path in (plan, sidecar_path(plan)):
            shutil.copy2(path, target / path.name)
        kept.append(f"{flavour}/{plan.name}")
    return kept
