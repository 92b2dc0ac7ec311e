"""Which file of a recipe goes into a Triton model repository: only one that passed, on the backend that serves it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from export.errors import ProjectError
from export.tensorrt.sidecar import BatchProfile, Sidecar, read_sidecar
from export.words import count, listed
from pipeline.artifacts.benchmark_report import read_serves
from pipeline.artifacts.engines import engines, plan_flavour, plan_precision
from pipeline.artifacts.parity_report import NOT_VERIFIED, PASS
from pipeline.artifacts.paths import ONNX, PARITY, Artifacts
from pipeline.recipe.schema import Recipe
from pipeline.serving.candidates import BACKENDS, ON_GPU, PREFERENCE, Verdicts
from pipeline.serving.select_model import Selection, fastest_of
from pipeline.terminal.command_line import COMMAND, CommandNeededError, general_command

log = logging.getLogger(__name__)

RTX = "rtx"  # the flavour of TensorRT that Triton has no backend for


def choose(artifacts: Artifacts, settings: Recipe, backend: str = "auto", precision: str = "auto") -> Selection:
    """Choose the file that Triton serves.

    It need not run on this machine: its verdict counts, wherever it was given. Files are ranked as for `infer`
    (`pipeline.serving.candidates.default_rank`), and on a GPU one that was measured to be faster goes first. Engines
    of TensorRT-RTX are passed over, since Triton has no backend for them.

    Args:
        artifacts: files of the recipe.
        settings: the sections ``infer`` and ``verify.thresholds`` of the recipe.
        backend: one of `BACKENDS`, or "auto". Defaults to "auto": engines, then ONNX Runtime on a GPU, then on a CPU.
        precision: "fp32", "fp16", "int8", or "auto". Defaults to "auto".

    Raises:
        ProjectError: nothing passed; with the reason for each file.
    """
    verdicts = Verdicts(artifacts, settings.verify.thresholds)
    passed: list[Selection] = []
    refused: list[Selection] = []
    for name in BACKENDS if backend == "auto" else (backend,):
        for each in PREFERENCE[name] if precision == "auto" else (precision,):
            for choice in _files(artifacts, name, each, verdicts, asked=backend != "auto"):
                (refused if choice.why or choice.verdict != PASS else passed).append(choice)
    rtx = [
        name for name in engines(artifacts) if plan_flavour(name) == RTX and precision in ("auto", plan_precision(name))
    ]
    if rtx and backend in ("auto", "tensorrt"):
        log.info("passed over %s of TensorRT-RTX, for which Triton has no backend", count(len(rtx), "engine"))
    if not passed:
        raise _nothing(artifacts, backend, precision, refused, rtx)
    size = settings.infer.batch_size
    passed.sort(key=lambda choice: choice.fit(size))
    best = _measured_fastest(artifacts, passed, size)
    first = best.fit(size)
    if objections := [choice.objection for choice in refused if choice.fit(size) < first]:
        log.warning("%s serves. Skipped: %s", best.run_name, listed(dict.fromkeys(objections), separator="; "))
    return best


def _files(artifacts: Artifacts, backend: str, precision: str, verdicts: Verdicts, asked: bool) -> Iterator[Selection]:
    """Yield the files of a precision, each with the reason where it cannot serve."""
    if backend != "tensorrt":
        name = ONNX[precision]
        verdict = verdicts.on(name, backend)
        if artifacts.has(name) and (asked or backend not in ON_GPU or verdict.verdict != NOT_VERIFIED):
            yield Selection(name, artifacts.path(name), backend, precision, verdict.verdict, why=verdict.why)
        return
    for name in engines(artifacts):
        if plan_precision(name) != precision or plan_flavour(name) == RTX:
            continue
        plan, verdict = artifacts.path(name), verdicts.on(name)
        profile: BatchProfile | None = None
        try:
            sidecar = read_sidecar(plan)
            profile, why = sidecar.profile, verdict.why or _why_not_on_triton(name, sidecar)
        except ProjectError as error:
            why = str(error)
        yield Selection(name, plan, backend, precision, verdict.verdict, profile, why=why)


def _why_not_on_triton(name: str, sidecar: Sidecar) -> str:
    """Return why Triton cannot serve an engine that may have passed; "" where it can."""
    if sidecar.profile.min > 1:
        return (
            f"{name} takes batches from {sidecar.profile.min}, and Triton sends single images too: build it with a "
            "profile of min 1"
        )
    if sidecar.options.get("strip_weights"):
        return f"{name} has no weights, and Triton does not add them: build it with build.strip_weights=false"
    return ""


def _measured_fastest(artifacts: Artifacts, passed: list[Selection], size: int) -> Selection:
    """Return the first, or on a GPU one that the recipe's benchmark measured to be faster."""
    serves, doubt = read_serves(artifacts)
    if passed[0].backend not in ON_GPU or serves is None:
        if doubt:
            log.warning("the benchmark does not count: %s", doubt)
        return passed[0]
    return fastest_of(passed, serves, artifacts, size)


def _nothing(
    artifacts: Artifacts, backend: str, precision: str, refused: list[Selection], rtx: list[str]
) -> ProjectError:
    if refused:
        reasons = listed(dict.fromkeys(choice.objection for choice in refused), separator="; ")
        where = f"{artifacts.path(PARITY)} says why. " if artifacts.has(PARITY) else ""
        return CommandNeededError(
            f"Expected a file that passed verification, for a server that others rely on. Received: {reasons}. "
            f"{where}Run `{COMMAND}` again where it is not up to date.",
            "run",
        )
    if rtx and backend == "tensorrt":
        return ProjectError(
            f"Expected an engine of TensorRT for --backend tensorrt. Received: {listed(rtx)} of TensorRT-RTX alone, "
            "for which Triton has no backend. Set build.flavour=tensorrt and build again on a machine with a GPU: "
            f"{general_command('build')}. Or serve the ONNX file: --backend onnxruntime."
        )
    return CommandNeededError(
        f"Expected a built model for backend {backend}, precision {precision} below {artifacts}. Received: none. "
        f"Run `{COMMAND}` first.",
        "run",
    )
