"""Which file answers: decided by the verdict of the verify stage, then by the batch sizes an engine was built for.

One that failed, or was never verified, does not serve unless the caller allows it by name. One that too few images
leave open serves where none passed, with a warning.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

from export.driver import driver_status
from export.errors import ExportError
from export.sidecar import read_sidecar
from pipeline.errors import PipelineError
from pipeline.layout import ONNX, PARITY, engines, plan_precision
from pipeline.parity_report import FAIL, INCONCLUSIVE, PASS
from pipeline.runners.base import Runner
from pipeline.runners.onnxruntime import is_installed as onnxruntime_is_installed
from pipeline.runners.options import RuntimeOptions
from pipeline.stage import Context
from pipeline.verdicts import Verdicts
from pipeline.words import listed

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
    why: str = ""  # where it is "not verified"

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
            why = f" ({self.why})" if self.why else ""
            log.warning("%s serves although its verdict is: %s%s", self.name, self.verdict, why)
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
    in the fewest runs, of these the fastest precision, and of this the engine tuned closest to the batch size. What
    would have come first and may not serve is named in one warning.

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
    verdicts = Verdicts(context.root, context.recipe.verify.thresholds)
    choices: list[Choice] = []
    passed_over: list[str] = []
    for name in ("tensorrt", "onnxruntime") if backend == "auto" else (backend,):
        if name == "tensorrt" and not driver:
            continue
        if backend == "auto" and name == "onnxruntime" and not onnxruntime_is_installed():
            continue
        for wanted in PREFERENCE[name] if precision == "auto" else (precision,):
            found, unusable = _files(context, name, wanted, verdicts)
            choices += found
            passed_over += unusable
    if not choices:
        missing = f" ({listed(passed_over, separator='; ')})" if passed_over else ""
        raise PipelineError(
            f"Expected a built model for backend {backend}, precision {precision} below {context.root}. Received: "
            f"none{missing}. Run `{context.command('run')}` first."
        )
    size = context.recipe.infer.batch_size if batch_size is None else batch_size

    def fit(choice: Choice) -> tuple[int, int, float]:
        runs, distance = choice.misfit(size)
        return runs, PREFERENCE[choice.backend].index(choice.precision), distance

    def rank(choice: Choice) -> tuple[bool, bool, int, int, float]:
        return choice.backend != choices[0].backend, choice.verdict != PASS, *fit(choice)

    serving = [choice for choice in choices if choice.verdict in (PASS, INCONCLUSIVE)]
    if serving:
        best = min(serving, key=rank)
        ahead = (best.backend != choices[0].backend, fit(best))
        better = [c for c in choices if (c.backend != choices[0].backend, fit(c)) < ahead]
        passed_over += [c.why or f"{c.name}: {c.verdict}" for c in better if c not in serving]
        if passed_over:
            log.warning("%s answers. Passed over: %s", best.name, listed(dict.fromkeys(passed_over), separator="; "))
        return best
    if allow_unverified:
        return min(choices, key=rank)
    every = [*passed_over, *(choice.why or f"{choice.name}: {choice.verdict}" for choice in choices)]
    reasons = listed(dict.fromkeys(every), separator="; ")
    failed = all(choice.verdict == FAIL for choice in choices)
    mend = f"{context.root / PARITY} says why" if failed else f"Run `{context.command('run')}`"
    raise PipelineError(
        f"Expected a model that passed verification. Received: {reasons}. {mend}, or take the risk with "
        "--allow-unverified."
    )


def _files(context: Context, backend: str, precision: str, verdicts: Verdicts) -> tuple[list[Choice], list[str]]:
    """The files of a precision that can be run, and what the others lack."""
    runtime = context.runtime
    if backend == "onnxruntime":
        name = ONNX[precision]
        path = context.root / name
        if not path.is_file():
            return [], [f"{name} is missing"] if verdicts.knows(name) else []
        found = verdicts.on(path)
        return [Choice(name, path, backend, precision, found.verdict, None, runtime, found.why)], []
    choices, unusable = [], []
    for plan in engines(context.root):
        if plan_precision(plan) != precision:
            continue
        try:
            profile = read_sidecar(plan).profile
        except ExportError as error:
            unusable.append(str(error))
            continue
        found, name = verdicts.on(plan), plan.relative_to(context.root).as_posix()
        sizes = (profile.min, profile.opt, profile.max)
        choices.append(Choice(name, plan, backend, precision, found.verdict, sizes, runtime, found.why))
    return choices, unusable
