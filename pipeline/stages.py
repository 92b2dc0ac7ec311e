"""The chain of stages, and nothing else: what each reads, what decides it, what runs it.

    images -> train -> export -> quantize -> build -> verify -> (benchmark) -> infer -> report

The benchmark is a command of its own, ``python -m benchmarks``, which defines its stage the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import building, exporting
from pipeline.artifacts import Artifacts
from pipeline.benchmark_report import read_serves
from pipeline.config import SECTIONS
from pipeline.environment import machine_environment
from pipeline.errors import add_note
from pipeline.files import sha256_file, sha256_json
from pipeline.gpu_evidence import FOLDER as EVIDENCE
from pipeline.layout import TENSORRT8
from pipeline.manifest import MANIFEST
from pipeline.recipe import IMAGENET, Preprocessing
from pipeline.runtime_environment import runtime_environment
from pipeline.stage import Context, Stage
from pipeline.unread_keys import unread_by_finished

MODEL = ("model.keras", "model.json")
DECODE = ("pipeline/preprocess.py", "pipeline/image_files.py", "pipeline/budget.py")
READ_IMAGES = (
    "pipeline/data.py",
    "pipeline/class_names.py",
    "pipeline/samples.py",
    "pipeline/folders.py",
    "pipeline/readable.py",
    "pipeline/roles.py",
    "pipeline/sources.py",
    "pipeline/tables.py",
    "pipeline/download.py",
    *DECODE,
)
RUN_ONNX = (
    "pipeline/runners/base.py",
    "pipeline/runners/onnxruntime.py",
    "pipeline/runners/providers.py",
    "export/external_data.py",
)
READ_CARD = ("pipeline/card.py", "pipeline/decode_spec.py")
RUN_ENGINES = (
    "pipeline/runners/tensorrt.py",
    "pipeline/runners/options.py",
    "pipeline/runners/opened.py",
    "pipeline/runners/session.py",
    "pipeline/runners/kernel_cache.py",
    "pipeline/runners/ring.py",
    "pipeline/runners/graphs.py",
    "pipeline/runners/on_device.py",
    "pipeline/runners/device_arrays.py",
    "pipeline/runners/cuda.py",
    "pipeline/runners/cuda_bindings.py",
    "pipeline/runners/cuda_pycuda.py",
    "pipeline/runners/cuda_resources.py",
    "export/capabilities.py",
    "export/driver.py",
    "export/engine_check.py",
    "export/sidecar.py",
    "export/versions.py",
)
LOAD_MODEL = (
    "pipeline/loading.py",
    "pipeline/model_file.py",
    "pipeline/foreign_files.py",
    "pipeline/model_guards.py",
    "pipeline/model_promises.py",
    "pipeline/model_calls.py",
    "pipeline/setting_limits.py",
    "pipeline/weight_budget.py",
    "pipeline/loop_budget.py",
    "pipeline/model_safety.py",
    "pipeline/model_classes.py",
    "pipeline/model_functions.py",
    "pipeline/saved_model.py",
    "pipeline/saved_comparison.py",
    "pipeline/graph_rewriting.py",
    "pipeline/graph_operations.py",
    "pipeline/graph_bounds.py",
    "pipeline/operation_list.py",
    "pipeline/frozen_graph.py",
    "pipeline/legacy.py",
    "pipeline/keras_imports.py",
    "pipeline/keras1.py",
    "pipeline/keras2_comparison.py",
    "pipeline/keras2_layers.py",
    "pipeline/keras_operations.py",
    "export/probes.py",
)
RUN_KERAS = (
    "pipeline/runners/keras.py",
    "pipeline/float_noise.py",
    *LOAD_MODEL,
    "export/logits.py",
    "export/preprocessing.py",
)
DATA_KEYS = ("data.max_bad_images",)
SHOWN_STAGES = ("train", "export", "quantize", "build", "verify", "benchmark", "infer")


def _check_images(context: Context) -> bool:
    for line in unread_by_finished(context.recipe):
        context.say_once(logging.WARNING, line)
    return context.leave_out_damaged()


def _train(context: Context, folder: Path) -> dict[str, Any]:
    from pipeline.checkpoint import Checkpoint
    from pipeline.training import train

    key = sha256_json(asdict(BY_NAME["train"].key(context, None)))
    checkpoint = Checkpoint(context.root / ".checkpoint", key, context.recipe.train.checkpoint_seconds)
    try:
        result = train(context.recipe, context.images, folder, checkpoint)
    except (KeyboardInterrupt, OSError) as error:
        if context.recipe.model.path is None and context.recipe.model.head == "new":
            add_note(error, checkpoint.keep())
        raise
    checkpoint.remove()
    return result


def _quantize(context: Context, folder: Path) -> dict[str, Any]:
    from pipeline.quantizing import quantize_model  # which imports onnx: a machine that only runs a bundle has none

    return quantize_model(context, folder)


def _quantized_bytes_per_weight(context: Context) -> int:
    from pipeline.quantizing import bytes_per_weight

    return bytes_per_weight(context)


def _verify(context: Context, folder: Path) -> dict[str, Any]:
    from pipeline.verify import verify_model

    return verify_model(context, folder)


def _infer(context: Context, folder: Path) -> dict[str, Any]:
    from pipeline.infer import infer_stage

    return infer_stage(context, folder)


def _report(context: Context, folder: Path) -> dict[str, Any]:
    from pipeline.report import READS, write_report

    context.card()  # which refuses a model file that is another by now
    return write_report(Artifacts(context.root, READS), context.recipe, context.invocation, folder)


def _train_inputs(context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
    model = context.recipe.model
    if model.path is not None:
        return (
            context.split("train", recorded)
            | context.external("model.path", model.path, recorded)
            | _preprocessing_inputs(context, recorded)
        )
    images = context.split("train", recorded) | context.split("validation", recorded)
    images |= _preprocessing_inputs(context, recorded)
    if model.weights == IMAGENET:
        return images | {"model.weights": f"{model.backbone} of keras.applications"}
    return images | context.external("model.weights", model.weights, recorded)


def _preprocessing_inputs(context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
    own = context.recipe.model.preprocessing
    mean = own.mean if isinstance(own, Preprocessing) and isinstance(own.mean, str) else None
    return context.external("model.preprocessing.mean", mean, recorded)


def _export_inputs(context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
    return context.required("train", *MODEL)


def _quantize_inputs(context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
    return (
        context.required("train", "model.json")
        | context.required("export", "model.onnx")
        | context.split("calibration", recorded)
    )


def onnx_inputs(context: Context) -> dict[str, str]:
    """The ONNX files; those for TensorRT 8.6 where the recipe asked for them."""
    return (
        context.required("export", "model.onnx")
        | context.required("quantize", "model.fp16.onnx", "model.int8.onnx")
        | context.files("quantize", *(Path(name).name for name in TENSORRT8.values()))
    )


def _build_inputs(context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
    return onnx_inputs(context)


def _verify_inputs(context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
    return (
        context.required("train", *MODEL)
        | onnx_inputs(context)
        | context.files("build", "*/*.plan", "*/*.json")
        | context.split("test", recorded)
    )


def _infer_inputs(context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
    return (
        context.required("train", "model.json")
        | onnx_inputs(context)
        | context.files("build", "*/*.plan", "*/*.json")
        | context.required("verify", "parity.json")
        | _serves_input(context)
        | context.split("test", recorded)
    )


def _serves_input(context: Context) -> dict[str, str]:
    """What of the benchmark can change which file answers: times differ at every run, which is faster seldom does."""
    serves, _ = read_serves(context.root)
    deciding = serves.deciding() if serves else None
    return {"benchmark/serves": sha256_json(deciding)} if deciding else {}


def _report_inputs(context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
    return (
        context.required("train", "model.json", "history.json")
        | context.files("train", "model.keras", "samples.npz")
        | context.files("export", "model.onnx")
        | context.required("quantize", "placement.json", "calibration.json")
        | context.files("quantize", "*.onnx", "sensitivity.csv")
        | context.files("build", "*/*.plan", "*/*.json")
        | context.required("verify", "parity.json", "reference.npz")
        | context.files("benchmark", "benchmark.json")
        | context.files(EVIDENCE, "*.json")
        | context.files("infer", "predictions.csv")
        | _shown_images(context, recorded)
        | {name: digest for stage in SHOWN_STAGES for name, digest in context.files(stage, MANIFEST).items()}
    )


def _shown_images(context: Context, recorded: Mapping[str, str]) -> dict[str, str]:
    """The images that the page shows; of one that is not on this machine, the recorded digest stands."""
    from pipeline.report_predictions import shown_images

    digests = {}
    for number, path in enumerate(shown_images(context.root)):
        name = f"infer/image {number}"
        if path.is_file():
            digests[name] = sha256_file(path)
        elif name in recorded:
            digests[name] = recorded[name]
    return digests


STAGES = (
    Stage(
        "train",
        _train_inputs,
        ("data", "model", "train"),
        (
            "pipeline/training.py",
            "pipeline/split_sizes.py",
            "pipeline/fitting.py",
            "pipeline/batches.py",
            "pipeline/checkpoint.py",
            "pipeline/pictures.py",
            "pipeline/stage_records.py",
            "export/placement_row.py",
            "pipeline/charts.py",
            *READ_CARD,
            "pipeline/models.py",
            "pipeline/model_settings.py",
            "pipeline/backbones.py",
            "pipeline/backbone_weights.py",
            "pipeline/published_weights.py",
            "pipeline/blocks.py",
            "pipeline/own_preprocessing.py",
            "pipeline/taking_over.py",
            "pipeline/adopting.py",
            "pipeline/inside_preprocessing.py",
            "pipeline/model_ends.py",
            "pipeline/model_graph.py",
            "pipeline/original.py",
            "pipeline/same_answers.py",
            "export/difference.py",
            "pipeline/model_facts.py",
            "pipeline/training_mode.py",
            *LOAD_MODEL,
            "export/logits.py",
            *READ_IMAGES,
            "export/preprocessing.py",
        ),
        _train,
        prepare=_check_images,
    ),
    Stage(
        "export",
        _export_inputs,
        ("export",),
        (
            "pipeline/exporting.py",
            *READ_CARD,
            "export/keras_to_onnx.py",
            "export/tf_conversion.py",
            "export/tf_operations.py",
            "export/tf_transposes.py",
            "export/unrolling.py",
            "export/convolutions.py",
            "export/shape_folding.py",
            "export/resizing.py",
            "export/self_check.py",
            "export/difference.py",
            "export/logits.py",
            "export/naming.py",
            "export/folding.py",
            "export/half_graphs.py",
            "export/interface.py",
            "export/graph.py",
            "export/constant_nodes.py",
            "export/onnx_file.py",
            "export/external_data.py",
            "export/preprocessing.py",
            *DECODE,
            *LOAD_MODEL,
        ),
        exporting.export_model,
        bytes_per_weight=lambda _: 4,  # FP32
    ),
    Stage(
        "quantize",
        _quantize_inputs,
        ("quantize", "verify.thresholds.fp16", "verify.thresholds.int8", *DATA_KEYS),
        (
            "pipeline/quantizing.py",
            "pipeline/split_sizes.py",
            "pipeline/halving.py",
            "pipeline/stage_records.py",
            *READ_CARD,
            "pipeline/charts.py",
            "export/quantize.py",
            "export/placement.py",
            "export/placement_row.py",
            "export/calibration.py",
            "export/scales.py",
            "export/weights.py",
            "export/equalization.py",
            "export/correction.py",
            "export/sensitivity.py",
            "export/half_sensitivity.py",
            "export/half_emulation.py",
            "export/half_graphs.py",
            "export/simulation.py",
            "export/metrics.py",
            "export/difference.py",
            "export/statistics.py",
            "export/precision.py",
            "export/folding.py",
            "export/rounding.py",
            "export/graph.py",
            "export/constant_nodes.py",
            "export/onnx_file.py",
            "export/external_data.py",
            "export/naming.py",
            "export/preprocessing.py",
            *READ_IMAGES,
        ),
        _quantize,
        bytes_per_weight=_quantized_bytes_per_weight,
    ),
    Stage(
        "build",
        _build_inputs,
        ("build",),
        (
            "pipeline/building.py",
            "pipeline/environment.py",
            "export/engine.py",
            "export/external_data.py",
            "export/build_steps.py",
            "export/build_options.py",
            "export/timing_cache.py",
            "export/driver.py",
            "export/capabilities.py",
            "export/inspection.py",
            "export/interrupts.py",
            "export/sidecar.py",
            "export/versions.py",
        ),
        building.build_engines,
        machine_environment,
        bytes_per_weight=building.bytes_per_weight,
    ),
    Stage(
        "verify",
        _verify_inputs,
        ("verify", "runtime", *DATA_KEYS),
        (
            "pipeline/doubts.py",
            "pipeline/verify.py",
            "pipeline/split_sizes.py",
            "pipeline/answering.py",
            "pipeline/parity.py",
            "pipeline/parity_report.py",
            "pipeline/best_classes.py",
            *READ_CARD,
            "export/metrics.py",
            "export/difference.py",
            "export/statistics.py",
            *READ_IMAGES,
            *RUN_ONNX,
            *RUN_ENGINES,
            *RUN_KERAS,
        ),
        _verify,
        runtime_environment,
    ),
    Stage(
        "infer",
        _infer_inputs,
        ("infer", "runtime", *DATA_KEYS),
        (
            "pipeline/infer.py",
            "pipeline/serving.py",
            "pipeline/default_order.py",
            "pipeline/measured.py",
            "pipeline/benchmark_report.py",
            "pipeline/verdicts.py",
            "pipeline/parity_report.py",
            "pipeline/float_noise.py",
            *READ_CARD,
            "export/statistics.py",
            "export/preprocessing.py",
            *READ_IMAGES,
            *RUN_ONNX,
            *RUN_ENGINES,
        ),
        _infer,
        runtime_environment,
    ),
    Stage(
        "report",
        _report_inputs,
        ("description", *SECTIONS),  # it shows all that differs from the defaults
        (
            "pipeline/report.py",
            "pipeline/report_cards.py",
            "pipeline/report_engines.py",
            "pipeline/report_evidence.py",
            "pipeline/gpu_evidence.py",
            "pipeline/evidence_words.py",
            "pipeline/report_failed.py",
            "pipeline/report_headline.py",
            "pipeline/report_missed.py",
            "pipeline/report_next.py",
            "pipeline/report_parity.py",
            "pipeline/report_predictions.py",
            "pipeline/report_quantization.py",
            "pipeline/report_recipe.py",
            "pipeline/report_speed.py",
            "pipeline/report_standing.py",
            "pipeline/doubts.py",
            "pipeline/published_weights.py",
            "pipeline/download.py",
            "pipeline/parity_report.py",
            "pipeline/float_noise.py",
            "pipeline/benchmark_report.py",
            "pipeline/default_order.py",
            "pipeline/measured.py",
            "pipeline/stage_records.py",
            "export/placement_row.py",
            "export/sidecar.py",
            "export/statistics.py",
            "export/preprocessing.py",
            "pipeline/card.py",
            "pipeline/report.css",
            "pipeline/csv_rows.py",
            "pipeline/html.py",
            "pipeline/bars.py",
            "pipeline/charts.py",
            "pipeline/decode_spec.py",
            *DECODE,
        ),
        _report,
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}
