"""Which file answers: decided by the verdict of the verify stage, then by what was measured on this GPU.

One that failed, or was never verified, does not serve unless the caller allows it by name. One that too few images
leave open serves where none on its backend passed, with a warning. Where nothing was measured the default order
decides, and on a CPU it always does.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from export.errors import ProjectError
from export.tensorrt.driver import DriverStatus, driver_status
from export.tensorrt.sidecar import BatchProfile, read_sidecar
from export.words import listed
from pipeline.artifacts.benchmark_report import read_serves
from pipeline.artifacts.engines import engines, plan_precision
from pipeline.artifacts.fastest import (
    Contender,
    Nearest,
    Serves,
    engine_contender,
    fastest,
    nearest,
    onnx_contender,
    runtime_part,
)
from pipeline.artifacts.parity_report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, run_name
from pipeline.artifacts.paths import ONNX, PARITY, Artifacts
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.recipe.schema import Recipe
from pipeline.runners.base import Runner
from pipeline.runners.onnxruntime import is_installed as onnxruntime_is_installed
from pipeline.runners.onnxruntime import why_not
from pipeline.runners.open import open_runner
from pipeline.serving.candidates import (
    BACKENDS,
    ON_GPU,
    PREFERENCE,
    Verdicts,
    files_to_run,
    fit,
    misfit,
    why_not_opened,
    why_nothing_runs,
)
from pipeline.terminal.command_line import COMMAND, CommandNeededError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """The file that answers."""

    name: str  # below the artifacts folder
    path: Path
    backend: str
    precision: str
    verdict: str
    profile: BatchProfile | None = None  # of an engine; None: any batch
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    why: str = ""  # where it is "not verified", or nothing here opens it
    opens: bool = True  # as far as that is seen before
    won: Nearest | None = None  # where it was measured to be faster than what comes first by default
    over: str = ""  # that one's run name

    @property
    def run_name(self) -> str:
        """The file, and what runs it where that has to be said."""
        return run_name(self.name, self.backend)

    def misfit(self, batch_size: int) -> tuple[int, float]:
        """How badly batches of this size fit, the smaller the better: see `pipeline.serving.candidates.misfit`."""
        return misfit(self.profile, batch_size)

    def fit(self, batch_size: int) -> tuple[int, int, int, float]:
        """Where it stands by default, the smallest first."""
        return fit(self.backend, self.precision, self.profile, batch_size)

    def open(self) -> Runner:
        """The runner for it; says so where it serves because it is faster, or without having passed."""
        if self.won is not None:
            measured = f"measured {self.won.pair.words} as fast as {self.over} at batch {self.won.batch}"
            log.info("%s answers: %s on this GPU", self.run_name, measured)
        if self.verdict != PASS:
            why = f" ({self.why})" if self.why else ""
            log.warning("%s serves although its verdict is: %s%s", self.run_name, self.verdict, why)
        return open_runner(self.path, self.backend, self.precision, self.runtime)


def select_model(
    artifacts: Artifacts,
    settings: Recipe,
    backend: str = "auto",
    precision: str = "auto",
    allow_unverified: bool = False,
    batch_size: int | None = None,
) -> Selection:
    """The best file that may serve here: on a GPU the fastest by measurement, else ONNX Runtime on the CPU.

    By default a backend comes before the next one (`BACKENDS`); on one backend, one that passed comes before one whose
    verdict is inconclusive; of those, engines that take a batch in the fewest runs, of these the preferred precision,
    and of this the engine tuned closest to the batch size. Where a GPU answers, one that was measured on this GPU to be
    decidedly faster takes its place (`pipeline.artifacts.fastest`), if its verdict is no worse and it needs no more
    runs. What would have come first and may not serve is named in one warning.

    Args:
        artifacts: files of the recipe.
        settings: its parts ``infer``, ``runtime`` and ``verify.thresholds``.
        backend: "tensorrt", "onnxruntime-cuda", "onnxruntime" (the CPU), or "auto" for whatever is here.
        precision: "fp32", "fp16", "int8", or "auto" for the fastest.
        allow_unverified: take the best fit where nothing passed.
        batch_size: images that will come at once. Defaults to None: the recipe's ``infer.batch_size``.

    Raises:
        ProjectError: none fits, nothing here runs any, or the verify stage failed it or does not know it.
    """
    driver = driver_status()
    lacking = _why_not(backend, driver)
    if backend != "auto" and lacking:
        what = "an NVIDIA GPU" if not driver else "ONNX Runtime's CUDA provider"
        instead = " Use --backend onnxruntime here." if onnxruntime_is_installed() else ""
        raise ProjectError(f"Expected {what} for --backend {backend}. Received: {lacking}.{instead}")
    if backend == "auto" and (idle := why_nothing_runs(artifacts, driver)):
        raise ProjectError(
            f"Expected something here that runs {files_to_run(artifacts)}. Received: {idle}. Install what runs "
            "them, or classify where they run."
        )
    verdicts = Verdicts(artifacts, settings.verify.thresholds)
    choices: list[Selection] = []
    passed_over: list[str] = []
    for name in BACKENDS if backend == "auto" else (backend,):
        if name == "onnxruntime-cuda" and backend == "auto" and not _may_answer(name, artifacts, choices):
            continue
        if _why_not(name, driver):
            continue
        if backend == "auto" and name == "onnxruntime" and not onnxruntime_is_installed():
            continue
        for wanted in PREFERENCE[name] if precision == "auto" else (precision,):
            found, unusable = _files(artifacts, settings.runtime, name, wanted, verdicts)
            if backend == "auto" and name == "tensorrt":
                found = [_as_here(choice, driver) for choice in found]
            choices += found
            passed_over += unusable
    if not choices:
        missing = f" ({listed(passed_over, separator='; ')})" if passed_over else ""
        raise CommandNeededError(
            f"Expected a built model for backend {backend}, precision {precision} below {artifacts}. Received: "
            f"none{missing}. Run `{COMMAND}` first.",
            "run",
        )
    size = settings.infer.batch_size if batch_size is None else batch_size

    def rank(choice: Selection) -> tuple[int, bool, int, int, float]:
        place, runs, preferred, distance = choice.fit(size)
        return place, choice.verdict != PASS, runs, preferred, distance

    serving = sorted((choice for choice in choices if choice.verdict in (PASS, INCONCLUSIVE)), key=rank)
    if serving:
        first = serving[0]
        better = [choice for choice in choices if choice not in serving and choice.fit(size) < first.fit(size)]
        passed_over += [choice.why or f"{choice.run_name}: {choice.verdict}" for choice in better]
        best = _measured_fastest(artifacts, settings.runtime, serving, driver, size)
        if passed_over:
            log.warning(
                "%s answers. Passed over: %s", best.run_name, listed(dict.fromkeys(passed_over), separator="; ")
            )
        return best
    if allow_unverified:
        return min(choices, key=lambda choice: (not choice.opens, rank(choice)))
    every = [*passed_over, *(choice.why or f"{choice.run_name}: {choice.verdict}" for choice in choices)]
    reasons = listed(dict.fromkeys(every), separator="; ")
    failed = all(choice.verdict == FAIL for choice in choices)
    mend = f"{artifacts.path(PARITY)} says why" if failed else f"Run `{COMMAND}`"
    raise CommandNeededError(
        f"Expected a model that passed verification. Received: {reasons}. {mend}, or take the risk with "
        "--allow-unverified.",
        "run",
    )


def _why_not(backend: str, driver: DriverStatus) -> str:
    """Why a backend cannot run here; "" where it can, or may."""
    if backend not in ON_GPU:
        return ""
    if not driver:
        return driver.reason
    return why_not("cuda") if backend == "onnxruntime-cuda" else ""


def _as_here(choice: Selection, driver: DriverStatus) -> Selection:
    """An engine as this machine has it: whatever its verdict elsewhere, it does not serve where nothing opens it."""
    why = why_not_opened(choice.path, driver)
    return replace(choice, verdict=NOT_RUN, why=f"engines: {why}", opens=False) if why else choice


def _may_answer(backend: str, artifacts: Artifacts, before: Sequence[Selection]) -> bool:
    """Whether a later backend can take the place of what passed on earlier ones.

    Asking ONNX Runtime for CUDA loads its libraries and takes memory of the GPU, which an engine should not pay for.
    """
    if not any(choice.verdict == PASS for choice in before):
        return True
    serves, _ = read_serves(artifacts)
    return serves is not None and serves.beats_others(backend)


def _measured_fastest(
    artifacts: Artifacts, runtime: RuntimeOptions, serving: Sequence[Selection], driver: DriverStatus, size: int
) -> Selection:
    """The first of those that may serve, or the one that was measured to be faster than it on this GPU."""
    first = serving[0]
    if first.backend not in ON_GPU:
        return first
    rivals = [
        choice
        for choice in serving
        if choice.backend in ON_GPU
        and choice.verdict in (PASS, first.verdict)
        and choice.misfit(size)[0] <= first.misfit(size)[0]
    ]
    serves, doubt = read_serves(artifacts)
    if serves is None:
        if doubt:
            log.warning("what was measured does not count: %s", doubt)
        return first
    if why := _elsewhere(serves, driver, runtime):
        log.debug("what was measured does not count: %s", why)
        return first
    here = {choice.name: _contender(artifacts, choice) for choice in rivals}
    _say_others(serves, here)

    def compared(name: str, other: str) -> Nearest | None:
        return nearest(serves.contests, here[name], here[other], size)

    def faster(name: str, other: str) -> bool:
        comparison = compared(name, other)
        return comparison is not None and comparison.pair.faster == name

    name = fastest([choice.name for choice in rivals], faster)
    if name == first.name or (won := compared(name, first.name)) is None:
        return first
    return replace(next(choice for choice in rivals if choice.name == name), won=won, over=first.run_name)


def _elsewhere(serves: Serves, driver: DriverStatus, runtime: RuntimeOptions) -> str:
    """Why a measurement is not one of this GPU, run as it will be; "" if it is."""
    if not 0 <= runtime.device < len(driver.devices):
        return f"there is no GPU {runtime.device}"
    gpu = driver.devices[runtime.device]
    then, now = (serves.gpu, serves.compute_capability), (gpu.name, gpu.compute_capability)
    if then != now:
        return f"it is of {' '.join(then)}, and here is {' '.join(now)}"
    if (options := runtime_part(runtime)) != dict(serves.runtime):
        return f"engines ran with runtime {dict(serves.runtime)}, and will with {options}"
    return ""


def _contender(artifacts: Artifacts, choice: Selection) -> Contender:
    if choice.backend == "tensorrt":
        return engine_contender(artifacts, choice.name)
    return onnx_contender(artifacts, choice.name, choice.precision)


def _say_others(serves: Serves, here: dict[str, Contender]) -> None:
    """Say which measured files are others than those here, so that what was measured of them does not count."""
    for then in {one.file: one for contest in serves.contests for one in contest.contenders}.values():
        now = here.get(then.file)
        if now is not None and (others := then.differences(now)):
            log.debug("what was measured of %s does not count, it is another now: %s", then.file, listed(others))


def _files(
    artifacts: Artifacts, runtime: RuntimeOptions, backend: str, precision: str, verdicts: Verdicts
) -> tuple[list[Selection], list[str]]:
    """The files of a precision that can be run, and what the others lack."""
    if backend != "tensorrt":
        name = ONNX[precision]
        path = artifacts.path(name)
        if not path.is_file():
            return [], [f"{name} is missing"] if verdicts.knows(name) else []
        found = verdicts.on(name, backend)
        return [Selection(name, path, backend, precision, found.verdict, None, runtime, found.why)], []
    choices, unusable = [], []
    for name in engines(artifacts):
        if plan_precision(name) != precision:
            continue
        plan = artifacts.path(name)
        try:
            profile = read_sidecar(plan).profile
        except ProjectError as error:
            unusable.append(str(error))
            continue
        found = verdicts.on(name)
        choices.append(Selection(name, plan, backend, precision, found.verdict, profile, runtime, found.why))
    return choices, unusable
