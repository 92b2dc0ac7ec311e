"""The parts of the verify stage: Keras' logits on the test images, and the candidates."""

import importlib.util
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import DataError, ProjectError
from export.metrics.distances import IMAGES, FloatNoise, read_noise
from export.tensorrt.sidecar import sidecar_path
from export.words import count
from pipeline.artifacts.archives import parse_meta, read_arrays
from pipeline.artifacts.engines import engines, plan_precision
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.inputs import Inputs
from pipeline.artifacts.manifest import matches_manifest
from pipeline.artifacts.parity_report import CUDA
from pipeline.artifacts.paths import CARD, KERAS, ONNX, REFERENCE, ROUNDING, SCALES, TENSORRT8, TENSORS, Artifacts
from pipeline.data.dataset import Pixels, check_classes, check_readable
from pipeline.data.sample import Sample
from pipeline.models.model_card import ModelCard
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.recipe.schema import Recipe
from pipeline.runners.base import Runner
from pipeline.runners.open import open_runner
from pipeline.terminal.console import progress_bar
from pipeline.verification.checks.engine_files import check_engine_file
from pipeline.verification.checks.rounded import Origin
from pipeline.verification.evaluate import evaluate
from pipeline.verification.explain.exceeding import find_extreme
from pipeline.verification.explain.misfits import find_misfits
from pipeline.verification.parity import Answer, Candidate, Reference

log = logging.getLogger(__name__)

NOTES = {
    "fp32": "",
    "fp16": "a proxy: a CPU runs the FP16 graph's arithmetic in FP32, only the weights and casts are FP16",
    "int8": "exact fake quantization: graph optimizations off; fusing Q/DQ pairs on a CPU changes the results",
}
CUDA_NOTES = {
    "fp32": "",
    "fp16": "",
    "int8": "fake quantization: CUDA computes every Q/DQ pair as the file says, and all between them in floats",
}


def run_all(
    candidates: Sequence[Candidate],
    reference: Reference,
    batch_size: int,
    check: Callable[[Runner, str], None] | None = None,
) -> dict[str, Answer]:
    """Run every candidate over the test images, one after the other, with a progress bar.

    Args:
        candidates: what to run.
        reference: holds the test images.
        batch_size: images per call.
        check: see `pipeline.verification.evaluate.evaluate`. Defaults to None.

    Returns:
        dict[str, Answer]: by run_name.
    """
    answers = {}
    for candidate in candidates:
        with progress_bar(total=len(reference.pixels), desc=f"  {candidate.run_name}", unit="img") as bar:
            pixels, noise = reference.pixels, reference.noise
            answers[candidate.run_name] = evaluate(
                candidate, pixels, batch_size, bar.update, check, noise, reference.logits
            )
    return answers


def list_candidates(artifacts: Artifacts, runtime: RuntimeOptions) -> list[Candidate]:
    """List the ONNX files on ONNX Runtime, on CUDA too where that is active, then every engine on TensorRT."""
    from pipeline.runners.onnxruntime import why_not

    cuda_is_active = not why_not("cuda")
    files = [(name, precision, source) for source, (precision, name) in zip([None, *ONNX.values()], ONNX.items())]
    files += [(name, precision, ONNX["fp32"]) for precision, name in TENSORRT8.items() if artifacts.has(name)]
    candidates: list[Candidate] = []
    for name, precision, source in files:
        path = artifacts.path(name)
        digest = sha256_file(path)
        runner = partial(open_runner, path, "onnxruntime", precision)
        extreme = partial(find_extreme, path)
        cpu = Candidate(name, "onnxruntime", precision, digest, source, runner, NOTES[precision], extreme=extreme)
        if precision != "fp32":
            cpu = replace(cpu, rounded=partial(find_misfits, path, _origin(artifacts, precision)))
        candidates.append(cpu)
        if cuda_is_active:
            # As it serves; its step is from the same file on the CPU, as an engine's, so that only the device differs.
            runner = partial(open_runner, path, CUDA, precision, runtime)
            candidates.append(Candidate(name, CUDA, precision, digest, cpu.run_name, runner, CUDA_NOTES[precision]))
    for name in engines(artifacts):
        plan, precision = artifacts.path(name), plan_precision(name)
        sidecar = sidecar_path(Path(name)).as_posix()
        file = check_engine_file(artifacts, name, digest := sha256_file(plan))
        candidates.append(
            Candidate(
                name,
                "tensorrt",
                precision,
                digest,
                file.source,
                partial(open_runner, plan, "tensorrt", precision, runtime),
                with_it={sidecar: sha256_file(artifacts.path(sidecar))} if artifacts.has(sidecar) else {},
                batch_sizes=file.batch_sizes,
                why_not=file.why_not,
            )
        )
    return candidates


def _origin(artifacts: Artifacts, precision: str) -> Origin:
    """Return what the quantize stage made a file from; FP16 has no scales, and its tensors are those of FP32."""
    scales, changes, rounding = (
        artifacts.path(name) if precision == "int8" and artifacts.has(name) else None
        for name in (SCALES, TENSORS, ROUNDING)
    )
    return Origin(ONNX["fp32"], artifacts.path(ONNX["fp32"]), scales, changes, rounding)


def list_samples(inputs: Inputs, most: int) -> Sequence[Sample]:
    """List the test images that are compared; none where the data are not on this machine.

    Args:
        inputs: of the stage.
        most: the recipe's verify.max_images.
    """
    try:
        return inputs.images.splits["test"][:most]
    except DataError:
        return ()


def make_reference(inputs: Inputs, settings: Recipe, card: ModelCard, out: Path) -> tuple[Reference, Mapping[str, str]]:
    """Compute Keras' logits on the test images, or take those of the former run if neither model nor images changed.

    Writes ``reference.npz`` (pixels, labels, logits, meta) into ``out``: all that a machine without TensorFlow
    and without the data set needs to verify engines; meta holds how far rounding alone moves the logits, and the names
    of the images.

    Args:
        inputs: of the stage.
        settings: its part of the recipe.
        card: the model's card.
        out: folder to write to.

    Returns:
        tuple[Reference, Mapping[str, str]]: the reference, and unreadable test images with the reason.

    Raises:
        DataError: fewer test images than the recipe's minimum, or unreadable ones above its limit.
        ProjectError: neither Keras nor a ``reference.npz`` of this model and these images is here.
    """
    meta: dict[str, Any] = {
        "model_sha256": sha256_file(inputs.path(KERAS)),
        **card.metadata(),
        "output": card.output,
        "max_images": settings.verify.max_images,
        **{name: digest for name, digest in inputs.digests.items() if name.startswith("data/")},
    }
    former_meta, saved, noise, names = _read_reference(inputs)
    skipped: Mapping[str, str] = {}
    if saved is None or former_meta != meta:
        check_classes(inputs.images, card.classes)
        decoder = Pixels(card.decode, settings.data.max_bad_images)
        samples = inputs.images.splits["test"][: settings.verify.max_images]
        images, labels = decoder.all(samples, "test images")
        check_readable(len(images), settings.verify.min_images, "test", decoder)
        skipped = decoder.skipped
        names = tuple(sample.name for sample in samples if sample.name not in skipped)
        logits, noise = run_keras(inputs.path(KERAS), card, settings, images)
        saved = {"pixels": images, "labels": labels, "logits": logits}
    elif (known := len(saved["labels"])) < settings.verify.min_images:  # the minimum was raised since
        raise DataError(
            f"Expected at least {count(settings.verify.min_images, 'test image')} (verify.min_images). Received: "
            f"{known:,} in {REFERENCE}. Add images to the test split, or lower the minimum."
        )
    elif noise is None and importlib.util.find_spec("keras") is not None:  # an earlier version wrote the file
        _, noise = run_keras(inputs.path(KERAS), card, settings, saved["pixels"], saved["logits"])
    if not names and len(here := list_samples(inputs, settings.verify.max_images)) == len(saved["labels"]):
        names = tuple(sample.name for sample in here)  # an earlier version wrote the file
    beside = {"noise": asdict(noise) if noise is not None else None, "names": names}
    np.savez(
        out / Path(REFERENCE).name,
        pixels=saved["pixels"],
        labels=saved["labels"],
        logits=saved["logits"],
        meta=np.frombuffer(json.dumps(meta | beside, sort_keys=True).encode(), dtype=np.uint8),
    )
    # The verdict depends on the card, which names classes and decoding, and on the images that were compared.
    with_it = {CARD: sha256_file(inputs.path(CARD)), REFERENCE: sha256_file(out / Path(REFERENCE).name)}
    pixels, labels, logits = saved["pixels"], saved["labels"], saved["logits"]
    return Reference(KERAS, meta["model_sha256"], pixels, labels, logits, noise, with_it, names), skipped


def run_keras(
    model: Path, card: ModelCard, settings: Recipe, pixels: np.ndarray, logits: np.ndarray | None = None
) -> tuple[np.ndarray, FloatNoise]:
    """Run Keras over images with a progress bar.

    Args:
        model: the Keras model.
        card: its card.
        settings: the recipe, for `verify.batch_size` and `model.allow`.
        pixels: uint8 (N, height, width, 3).
        logits: Keras' logits of these images. Defaults to None: computed.

    Returns:
        tuple[np.ndarray, FloatNoise]: float32 (N, C) logits, and how far rounding alone moves them.

    Raises:
        ProjectError: Keras is not here, refuses the model, or gives logits that are not finite.
    """
    from pipeline.runners.keras import open_keras

    batch_size = settings.verify.batch_size
    try:
        runner = open_keras(model, card, settings.model.allow, batch_size)
        with runner, progress_bar(total=len(pixels), desc=f"  {KERAS}", unit="img") as bar:
            card.check_runner(runner, KERAS)
            if logits is None:
                parts = []
                for start in range(0, len(pixels), batch_size):
                    parts.append(runner.infer(pixels[start : start + batch_size]).logits)
                    bar.update(len(parts[-1]))
                logits = np.concatenate(parts)
            if not np.isfinite(logits).all():
                raise ProjectError(
                    f"Expected finite logits from {model}. Received: NaN or infinity; the model is broken."
                )
            return logits, runner.noise(pixels[:IMAGES], float(np.abs(logits).max()))
    except ModuleNotFoundError as error:
        raise ProjectError(
            f"Expected Keras, or {REFERENCE} of this model and these images. Received: neither ({error}). "
            "Bring the artifacts with `python -m pipeline bundle` from the machine that trained them."
        ) from error


def _read_reference(
    inputs: Inputs,
) -> tuple[dict[str, object], dict[str, np.ndarray] | None, FloatNoise | None, tuple[str, ...]]:
    """Return metadata, arrays, noise and names of the images of a former run; None and () for what is not known."""
    path = inputs.path(REFERENCE)
    if not path.is_file():
        return {}, None, None, ()
    vouched = matches_manifest(inputs, REFERENCE)
    try:
        if not vouched:
            raise ValueError("it is not what the verify stage wrote")
        arrays = read_arrays(path, ("meta", "pixels", "labels", "logits"))
        meta = parse_meta(arrays.pop("meta"))
        noise = read_noise(meta)
        meta.pop("noise", None)
        names = tuple(map(str, meta.pop("names", ())))
        if len(names) not in (0, len(arrays["labels"])):
            raise ValueError(f"{count(len(names), 'name')} of {count(len(arrays['labels']), 'image')}")
        return meta, arrays, noise, names
    except Exception as error:  # a damaged zip fails in many ways; it is only a cache, so it is computed again
        log.warning("%s is damaged and is computed again: %s", path, error)
        return {}, None, None, ()
