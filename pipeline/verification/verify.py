"""The verify stage: Keras' answers on the test images, and how close each exported file comes to them."""

import importlib.util
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import ProjectError
from export.metrics.distances import IMAGES, FloatNoise, noise_of
from export.records import parse_json
from export.tensorrt.sidecar import read_sidecar, sidecar_path
from export.words import aligned
from pipeline.artifacts.archives import read_arrays
from pipeline.artifacts.engines import engine_sources, engines, plan_precision
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.inputs import Inputs
from pipeline.artifacts.manifest import as_recorded
from pipeline.artifacts.parity_report import (
    CUDA,
    FAIL,
    INCONCLUSIVE,
    NOT_RUN,
    PASS,
    Hop,
    ParityReport,
    allowed,
    not_run,
)
from pipeline.artifacts.paths import CARD, KERAS, ONNX, REFERENCE, TENSORRT8, Artifacts
from pipeline.data.dataset import Pixels, check_classes, check_readable
from pipeline.models.model_card import ModelCard
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.recipe.schema import Recipe
from pipeline.runners.base import Runner
from pipeline.runners.open import open_runner
from pipeline.terminal.console import progress_bar
from pipeline.verification.evaluate import evaluate
from pipeline.verification.parity import Answer, Candidate, Reference

log = logging.getLogger(__name__)

NOTES = {
    "fp32": "",
    "fp16": "a proxy: a CPU runs the FP16 graph's arithmetic in FP32, only the weights and casts are FP16",
    "int8": "exact fake quantization: graph optimizations off; what fuses Q/DQ pairs on a CPU gives other answers",
}
CUDA_NOTES = {
    "fp32": "",
    "fp16": "",
    "int8": "fake quantization: CUDA computes every Q/DQ pair as the file says, and what is between them in floats",
}


def run_all(
    candidates: Sequence[Candidate],
    reference: Reference,
    batch_size: int,
    check: Callable[[Runner, str], None] | None = None,
) -> dict[str, Answer]:
    """Run every candidate over the test images, one after the other, with a progress bar."""
    answers = {}
    for candidate in candidates:
        with progress_bar(total=len(reference.pixels), desc=f"  {candidate.run_name}", unit="img") as bar:
            answers[candidate.run_name] = evaluate(candidate, reference.pixels, batch_size, bar.update, check)
    return answers


def list_candidates(artifacts: Artifacts, runtime: RuntimeOptions) -> list[Candidate]:
    """The ONNX files on ONNX Runtime, on CUDA too where that is active, then every engine on TensorRT."""
    from pipeline.runners.onnxruntime import why_not

    cuda_is_active = not why_not("cuda")

    def onnx(name: str, precision: str, before: str | None) -> list[Candidate]:
        path = artifacts.path(name)
        digest = sha256_file(path)
        runner = partial(open_runner, path, "onnxruntime", precision, exact=precision == "int8")
        runs = [Candidate(name, "onnxruntime", precision, digest, before, runner, NOTES[precision])]
        if cuda_is_active:
            # As it serves; held against the same file on the CPU as an engine is, so that the device alone differs.
            runner = partial(open_runner, path, CUDA, precision, runtime)
            runs.append(Candidate(name, CUDA, precision, digest, runs[0].run_name, runner, CUDA_NOTES[precision]))
        return runs

    found: list[Candidate] = []
    for before, (precision, name) in zip([None, *ONNX.values()], ONNX.items()):
        found += onnx(name, precision, before)
    for precision, name in TENSORRT8.items():
        if artifacts.has(name):
            found += onnx(name, precision, ONNX["fp32"])
    for name in engines(artifacts):
        plan, precision = artifacts.path(name), plan_precision(name)
        beside = sidecar_path(Path(name)).as_posix()
        found.append(
            Candidate(
                name,
                "tensorrt",
                precision,
                sha256_file(plan),
                _source(artifacts, name),
                partial(open_runner, plan, "tensorrt", precision, runtime),
                with_it={beside: sha256_file(artifacts.path(beside))} if artifacts.has(beside) else {},
            )
        )
    return found


def _source(artifacts: Artifacts, plan: str) -> str:
    """The ONNX file that an engine was built from; the usual one where the sidecar is damaged, as its runner says."""
    precision = plan_precision(plan)
    try:
        digest = read_sidecar(artifacts.path(plan)).onnx_sha256
    except ProjectError:
        return ONNX[precision]
    sources = engine_sources(artifacts, precision)
    return next((name for name in sources if sha256_file(artifacts.path(name)) == digest), ONNX[precision])


def make_reference(inputs: Inputs, settings: Recipe, card: ModelCard, out: Path) -> tuple[Reference, Mapping[str, str]]:
    """Keras' logits on the test images, from the former run if neither model nor images changed.

    Writes ``reference.npz`` (pixels, labels, logits, meta) into ``out``: all that a machine without TensorFlow
    and without the data set needs to verify engines; meta says how far rounding alone moves the logits.
    """
    meta: dict[str, Any] = {
        "model_sha256": sha256_file(inputs.path(KERAS)),
        **card.metadata(),
        "output": card.output,
        "max_images": settings.verify.max_images,
        **{name: digest for name, digest in inputs.digests.items() if name.startswith("data/")},
    }
    former_meta, saved, noise = _read_reference(inputs)
    if former_meta != meta:
        saved = None
    skipped: Mapping[str, str] = {}
    if saved is None:
        check_classes(inputs.images, card.classes)
        pixels = Pixels(card.decode, settings.data.max_bad_images)
        images, labels = pixels.all(inputs.images.splits["test"][: settings.verify.max_images], "test images")
        check_readable(len(images), settings.verify.min_images, "test", pixels)
        skipped = pixels.skipped
        saved = {
            "pixels": images,
            "labels": labels,
        }
        saved["logits"], noise = _ask_keras(inputs, settings, card, images)
    elif noise is None and importlib.util.find_spec("keras") is not None:  # an earlier version wrote it
        _, noise = _ask_keras(inputs, settings, card, saved["pixels"], saved["logits"])
    told = meta | {"noise": asdict(noise) if noise is not None else None}
    text = np.frombuffer(json.dumps(told, sort_keys=True).encode(), dtype=np.uint8)
    np.savez(
        out / Path(REFERENCE).name,
        pixels=saved["pixels"],
        labels=saved["labels"],
        logits=saved["logits"],
        meta=text,
    )
    # Names of classes and decoding are part of an answer; the images are what it was compared on.
    with_it = {CARD: sha256_file(inputs.path(CARD)), REFERENCE: sha256_file(out / Path(REFERENCE).name)}
    return Reference(KERAS, meta["model_sha256"], **saved, noise=noise, with_it=with_it), skipped


def parity_table(parity: ParityReport) -> str:
    """The hops as a text table, for a terminal; what did not run is a line a reason below it."""
    rows = [("", "reference", "candidate", "max rel", "SQNR dB", "top-1", "accuracy", "verdict")]
    said: set[tuple[str, str]] = set()
    for hop in (hop for hop in parity.hops if hop.verdict != NOT_RUN):
        rows.append(
            (
                hop.kind,
                hop.reference,
                hop.run_name,
                "" if hop.relative_error is None else f"{hop.relative_error:.1e}",
                _sqnr_text(hop),
                "" if hop.top1_agreement is None else f"{hop.top1_agreement:.2%}",
                "" if hop.accuracy_candidate is None else f"{hop.accuracy_candidate:.2%}",
                _verdict_text(hop, said),
            )
        )
    lines = aligned(rows)
    lines += [
        f"  not run: {', '.join(names)}: {why or 'no reason is known'}" for why, names in not_run(parity.hops).items()
    ]
    permitted = allowed(parity.hops)
    return "\n".join([*lines, *([f"  {permitted}"] if permitted else []), f"  verdict: {parity.verdict}"])


def _sqnr_text(hop: Hop) -> str:
    """The SQNR, or what there is in its place: it is infinite where both are equal, and no number with NaN."""
    if not hop.compared:
        return ""
    return f"{hop.sqnr_db:.1f}" if hop.sqnr_db is not None else "equal" if hop.equal else "NaN or inf"


def _verdict_text(hop: Hop, said: set[tuple[str, str]]) -> str:
    """The verdict and why; what keeps a file from answering is said once, although each of its hops fails by it."""
    if hop.verdict == FAIL and not hop.compared:
        if (what := (hop.run_name, str(hop.why))) in said:
            return f"{hop.verdict} (as above)"
        said.add(what)
    if hop.verdict == INCONCLUSIVE:
        return str(hop.why)  # which begins with the word
    more = {PASS: hop.certainty, FAIL: hop.why}.get(hop.verdict)
    return f"{hop.verdict} ({more})" if more else str(hop.verdict)


def _ask_keras(
    inputs: Inputs, settings: Recipe, card: ModelCard, pixels: np.ndarray, logits: np.ndarray | None = None
) -> tuple[np.ndarray, FloatNoise]:
    """Keras' logits, unless they are known, and how far rounding alone moves them."""
    from pipeline.runners.keras import open_keras

    model, batch_size, allow = inputs.path(KERAS), settings.verify.batch_size, settings.model.allow
    try:
        runner = open_keras(model, card, allow, batch_size)
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


def _read_reference(inputs: Inputs) -> tuple[dict[str, object], dict[str, np.ndarray] | None, FloatNoise | None]:
    path = inputs.path(REFERENCE)
    if not path.is_file():
        return {}, None, None
    vouched = as_recorded(inputs, REFERENCE)
    try:
        if not vouched:
            raise ValueError("it is not what the verify stage wrote")
        arrays = read_arrays(path, ("meta", "pixels", "labels", "logits"))
        meta = parse_json(arrays.pop("meta").tobytes(), "meta")
        noise = noise_of(meta)
        meta.pop("noise", None)
        return meta, arrays, noise
    except Exception as error:  # a damaged zip fails in many ways; it is only a cache, so it is made anew
        log.warning("%s is damaged and is made anew: %s", path, error)
        return {}, None, None
