"""Which file answers: decided by the verdict of the verify stage, then by the batch sizes an engine was built for.

One that failed, or was never verified, does not serve unless the caller allows it by name. One that too few images
leave open serves where none passed, with a warning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from export.driver import driver_status
from export.errors import ExportError
from export.sidecar import read_sidecar
from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_file
from pipeline.layout import CARD, ONNX, PARITY, engines, plan_precision
from pipeline.parity import INCONCLUSIVE, PASS, verdict_of
from pipeline.runners.base import Runner
from pipeline.runners.options import RuntimeOptions
from pipeline.stage import Context

log = logging.getLogger(__name__)

# On a GPU the fastest engine that passed; on a CPU FP32, because FP16 and Q/DQ graphs are not faster there.
PREFERENCE = {"tensorrt": ("int8", "fp16", "fp32"), "onnxruntime": ("fp32", "fp16", "int8")}


@dataclass(frozen=True)
class Choice:
    """The file that answers."""

    name: str  # below the artifacts folder
    path: Path
    backend: str
    precision: str
    verdict: str
    profile: tuple[int, int, int] | None = None  # min, opt and max of an engine's batch; None: any batch
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)

    def misfit(self, batch_size: int) -> tuple[int, float]:
        """How badly batches of this size fit, the smaller the better: runs a batch, then distance from the best size.

        An engine runs in pieces what is larger than its largest batch, and fills up what is smaller than its smallest.
        """
        if self.profile is None:
            return 1, 0.0
        smallest, best, largest = self.profile
        piece = max(min(batch_size, largest), smallest)
        return math.ceil(batch_size / largest), abs(math.log(piece / best)) + math.log(piece / min(piece, batch_size))

    def open(self) -> Runner:
        """The runner for it; says so where it serves without having passed."""
        if self.verdict != PASS:
            log.warning("%s serves although its verdict is: %s", self.name, self.verdict)
        if self.backend == "tensorrt":
            from pipeline.runners.tensorrt import TensorRTRunner

            return TensorRTRunner(self.path, self.runtime)
        from pipeline.runners.onnxruntime import OnnxRunner

        return OnnxRunner(self.path, precision=self.precision)


def choose(
    context: Context,
    backend: str = "auto",
    precision: str = "auto",
    allow_unverified: bool = False,
    batch_size: int | None = None,
) -> Choice:
    """The best file that may serve here: TensorRT if there is a GPU, else ONNX Runtime.

    On one backend, one that passed comes before one whose verdict is inconclusive; of those, engines that take a batch
    in the fewest runs, of these the fastest precision, and of this the engine tuned closest to the batch size.

    Args:
        context: the recipe and its artifacts.
        backend: "tensorrt", "onnxruntime", or "auto" for the first that is here.
        precision: "fp32", "fp16", "int8", or "auto" for the fastest.
        allow_unverified: take the best fit where nothing passed.
        batch_size: images that will come at once. Defaults to None: the recipe's ``infer.batch_size``.

    Raises:
        PipelineError: none fits, or the verify stage failed it or does not know it.
    """
    driver = driver_status()
    if backend == "tensorrt" and not driver:
        raise PipelineError(
            f"Expected an NVIDIA GPU for --backend tensorrt. Received: {driver.reason}. Use --backend onnxruntime here."
        )
    parity_path = context.root / PARITY
    parity = read_json(parity_path) if parity_path.is_file() else {}
    if not isinstance(parity, dict) or not isinstance(parity.get("hops", []), list):
        raise PipelineError(f"Expected a verdict in {parity_path}. Received: something else. Run `verify` again.")
    card = context.root / CARD
    named = card.is_file() and parity.get("subjects", {}).get(CARD) == sha256_file(card)

    def verdict(key: str, digest: str) -> str:
        return verdict_of(parity, key, digest) if named else "not verified"

    choices = []
    for name in ("tensorrt", "onnxruntime") if backend == "auto" else (backend,):
        if name == "tensorrt" and not driver:
            continue
        for wanted in PREFERENCE[name] if precision == "auto" else (precision,):
            choices += [
                Choice(key, path, name, wanted, verdict(key, digest), profile, context.recipe.runtime)
                for key, path, digest, profile in _files(context, name, wanted)
            ]
    if not choices:
        raise PipelineError(
            f"Expected a built model for backend {backend}, precision {precision} below {context.root}. Received: "
            f"none. Run `{context.command('run')}` first."
        )
    size = context.recipe.infer.batch_size if batch_size is None else batch_size

    def rank(choice: Choice) -> tuple[bool, bool, int, int, float]:
        runs, distance = choice.misfit(size)
        precedence = PREFERENCE[choice.backend].index(choice.precision)
        return choice.backend != choices[0].backend, choice.verdict != PASS, runs, precedence, distance

    serving = [choice for choice in choices if choice.verdict in (PASS, INCONCLUSIVE)]
    if serving:
        return min(serving, key=rank)
    if allow_unverified:
        return min(choices, key=rank)
    verdicts = "; ".join(f"{choice.name}: {choice.verdict}" for choice in choices)
    raise PipelineError(
        f"Expected a model that passed verification. Received: {verdicts}. "
        f"Run `{context.command('verify')}`, or take the risk with --allow-unverified."
    )


def _files(
    context: Context, backend: str, precision: str
) -> Iterator[tuple[str, Path, str, tuple[int, int, int] | None]]:
    """Name, path, sha256 and batch sizes of the files of a precision; an engine that cannot be run is left out."""
    if backend == "onnxruntime":
        path = context.root / ONNX[precision]
        if path.is_file():
            yield ONNX[precision], path, sha256_file(path), None
        return
    for plan in engines(context.root):
        if plan_precision(plan) != precision:
            continue
        try:
            profile = read_sidecar(plan).profile
        except ExportError as error:
            log.warning("does not serve: %s", error)
            continue
        name = plan.relative_to(context.root).as_posix()
        yield name, plan, sha256_file(plan), (profile.min, profile.opt, profile.max)
