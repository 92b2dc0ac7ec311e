"""Select the file that serves: by the verdict of the verify stage, then by the benchmark on this GPU.

A file that failed, or was never verified, does not serve unless the caller allows it. One with an inconclusive verdict
serves where none on its backend passed, with a warning. Without a benchmark the default order decides, and on a CPU it
always does.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from export.errors import ProjectError
from export.tensorrt.driver import DriverStatus, driver_status
from export.tensorrt.sidecar import BatchProfile, read_sidecar, sidecar_path
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
    speed_options,
)
from pipeline.artifacts.files import sha256_file, sha256_json
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
    default_rank,
    files_to_run,
    misfit,
    why_not_opened,
    why_nothing_runs,
)
from pipeline.terminal.command_line import COMMAND, CommandNeededError

log = logging.getLogger(__name__)

MOST_AT_ONCE = 256  # images that ONNX Runtime gets at once


@dataclass(frozen=True)
class Selection:
    """A file that may serve, and how it is run.

    Attributes:
        name: the file's path below the artifacts folder.
        path: the file.
        backend: one of `BACKENDS`.
        precision: "fp32", "fp16" or "int8".
        verdict: of the verify stage.
        profile: batch sizes of an engine. Defaults to None: any batch.
        runtime: options of the runner.
        why: the reason where it is "not verified", or nothing here opens it; "" elsewhere.
        opens: False where it is known that nothing here opens it.
        won: the comparison that it won against the first file of the default order. Defaults to None: it is the first.
        over: run name of that file.
    """

    name: str
    path: Path
    backend: str
    precision: str
    verdict: str
    profile: BatchProfile | None = None
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    why: str = ""
    opens: bool = True
    won: Nearest | None = None
    over: str = ""

    @property
    def run_name(self) -> str:
        """The file, and the backend where the name does not imply it."""
        return run_name(self.name, self.backend)

    @property
    def objection(self) -> str:
        """Why it does not serve: the reason, or its verdict."""
        return self.why or f"{self.run_name}: {self.verdict}"

    def fit(self, batch_size: int) -> tuple[int, int, int, float]:
        """Return its default rank, smallest first: see `pipeline.serving.candidates.default_rank`."""
        return default_rank(self.backend, self.precision, self.profile, batch_size)

    def announce(self) -> None:
        """Log where it serves because it is faster, or although it did not pass."""
        if self.won is not None:
            log.info(
                "%s serves: measured %s as fast as %s at batch %s on this GPU",
                *(self.run_name, self.won.pair.words, self.over, self.won.batch),
            )
        if self.verdict != PASS:
            why = f" ({self.why})" if self.why else ""
            log.warning("%s serves although its verdict is: %s%s", self.run_name, self.verdict, why)

    @property
    def most_at_once(self) -> int:
        """Number of images that its runner is given at once, at most."""
        return self.profile.max if self.profile else MOST_AT_ONCE

    def digest(self) -> str:
        """Return the sha256 of what decides its answers: the file's bytes, and those of an engine's sidecar."""
        files = [self.path, *([sidecar_path(self.path)] if self.backend == "tensorrt" else [])]
        return sha256_json([sha256_file(path) for path in files])

    def open(self) -> Runner:
        """Announce it and open its runner."""
        self.announce()
        return open_runner(self.path, self.backend, self.precision, self.runtime)


def select_model(
    artifacts: Artifacts,
    settings: Recipe,
    backend: str = "auto",
    precision: str = "auto",
    allow_unverified: bool = False,
    batch_size: int | None = None,
) -> Selection:
    """Select the best file that may serve here: on a GPU the fastest by measurement, else ONNX Runtime on the CPU.

    Files are ranked by backend (`BACKENDS`); within a backend by verdict, pass before inconclusive; then by the number
    of runs that an engine needs for a batch, by precision, and by the distance of the engine's optimal batch size. If
    the first runs on a GPU, a file that was measured on this GPU to be significantly faster replaces it
    (`pipeline.artifacts.fastest`), provided that its verdict is no worse and it needs no more runs. Files that would
    rank higher but may not serve are named in one warning.

    Args:
        artifacts: files of the recipe.
        settings: the sections ``infer``, ``runtime`` and ``verify.thresholds`` of the recipe.
        backend: "tensorrt", "onnxruntime-cuda", "onnxruntime" (the CPU), or "auto". Defaults to "auto": any that is
            available.
        precision: "fp32", "fp16", "int8", or "auto". Defaults to "auto": the fastest.
        allow_unverified: take the best file where none passed. Defaults to False.
        batch_size: images per batch. Defaults to None: the recipe's ``infer.batch_size``.

    Returns:
        Selection: the file, its verdict, and how it is run.

    Raises:
        ProjectError: there is no such file, nothing here runs any, or none passed.
    """
    driver = driver_status()
    refusal = _why_not(backend, driver)
    if backend != "auto" and refusal:
        needed = "an NVIDIA GPU" if not driver else "ONNX Runtime's CUDA provider"
        instead = " Use --backend onnxruntime here." if onnxruntime_is_installed() else ""
        raise ProjectError(f"Expected {needed} for --backend {backend}. Received: {refusal}.{instead}")
    if backend == "auto" and (idle := why_nothing_runs(artifacts, driver)):
        raise ProjectError(
            f"Expected something here that runs {files_to_run(artifacts)}. Received: {idle}. Install what runs "
            "them, or classify where they run."
        )
    verdicts = Verdicts(artifacts, settings.verify.thresholds)
    choices: list[Selection] = []
    objections: list[str] = []
    for name in BACKENDS if backend == "auto" else (backend,):
        if (
            (name == "onnxruntime-cuda" and backend == "auto" and not _may_serve(name, artifacts, choices))
            or _why_not(name, driver)
            or (name == "onnxruntime" and backend == "auto" and not onnxruntime_is_installed())
        ):
            continue
        for each in PREFERENCE[name] if precision == "auto" else (precision,):
            files, unusable = _files(artifacts, settings.runtime, name, each, verdicts)
            if backend == "auto" and name == "tensorrt":
                files = [_on_this_machine(choice, driver) for choice in files]
            choices += files
            objections += unusable
    if not choices:
        reasons = f" ({listed(objections, separator='; ')})" if objections else ""
        raise CommandNeededError(
            f"Expected a built model for backend {backend}, precision {precision} below {artifacts}. Received: "
            f"none{reasons}. Run `{COMMAND}` first.",
            "run",
        )
    size = settings.infer.batch_size if batch_size is None else batch_size

    def rank(choice: Selection) -> tuple[int, bool, int, int, float]:
        place, runs, preferred, distance = choice.fit(size)
        return place, choice.verdict != PASS, runs, preferred, distance

    serving = sorted((choice for choice in choices if choice.verdict in (PASS, INCONCLUSIVE)), key=rank)
    if serving:
        best_rank = serving[0].fit(size)
        objections += [choice.objection for choice in choices if choice not in serving and choice.fit(size) < best_rank]
        best = _measured_fastest(artifacts, settings.runtime, serving, driver, size)
        if objections:
            log.warning("%s serves. Skipped: %s", best.run_name, listed(dict.fromkeys(objections), separator="; "))
        return best
    if allow_unverified:
        return min(choices, key=lambda choice: (not choice.opens, rank(choice)))
    reasons = listed(dict.fromkeys([*objections, *(choice.objection for choice in choices)]), separator="; ")
    failed = all(choice.verdict == FAIL for choice in choices)
    remedy = f"{artifacts.path(PARITY)} says why" if failed else f"Run `{COMMAND}`"
    raise CommandNeededError(
        f"Expected a model that passed verification. Received: {reasons}. {remedy}, or accept the risk with "
        "--allow-unverified.",
        "run",
    )


def _why_not(backend: str, driver: DriverStatus) -> str:
    """Return why a backend cannot run here; "" where it can, or may."""
    if backend not in ON_GPU:
        return ""
    if not driver:
        return driver.reason
    return why_not("cuda") if backend == "onnxruntime-cuda" else ""


def _on_this_machine(choice: Selection, driver: DriverStatus) -> Selection:
    """Return an engine as "not run" where nothing here opens it, whatever its verdict on another machine."""
    why = why_not_opened(choice.path, driver)
    return replace(choice, verdict=NOT_RUN, why=f"engines: {why}", opens=False) if why else choice


def _may_serve(backend: str, artifacts: Artifacts, earlier: Sequence[Selection]) -> bool:
    """Return whether a later backend can replace what passed on earlier ones.

    To find out whether ONNX Runtime has CUDA loads its libraries and takes memory of the GPU, a cost that an engine
    should not pay.
    """
    if not any(choice.verdict == PASS for choice in earlier):
        return True
    serves, _ = read_serves(artifacts)
    return serves is not None and serves.beats_others(backend)


def _measured_fastest(
    artifacts: Artifacts, runtime: RuntimeOptions, serving: Sequence[Selection], driver: DriverStatus, size: int
) -> Selection:
    """Return the first of the files that may serve, or one that was measured to be faster than it on this GPU."""
    first = serving[0]
    if first.backend not in ON_GPU:
        return first
    serves, doubt = read_serves(artifacts)
    if serves is None:
        if doubt:
            log.warning("the benchmark does not count: %s", doubt)
        return first
    if difference := _other_gpu(serves, driver, runtime):
        log.debug("the benchmark does not count: %s", difference)
        return first
    return fastest_of(serving, serves, artifacts, size)


def fastest_of(serving: Sequence[Selection], serves: Serves, artifacts: Artifacts, size: int) -> Selection:
    """Return the first of the files that may serve, or one that was measured to be faster than it on a GPU.

    Args:
        serving: files that may serve, by their default rank; the first runs on a GPU.
        serves: what was measured on that GPU.
        artifacts: files of the recipe.
        size: images per batch.
    """
    first = serving[0]
    rivals = [
        choice
        for choice in serving
        if choice.backend in ON_GPU
        and choice.verdict in (PASS, first.verdict)
        and misfit(choice.profile, size)[0] <= misfit(first.profile, size)[0]
    ]
    contenders = {
        choice.name: engine_contender(artifacts, choice.name)
        if choice.backend == "tensorrt"
        else onnx_contender(artifacts, choice.name, choice.precision)
        for choice in rivals
    }
    _log_changed_files(serves, contenders)

    def compared(name: str, other: str) -> Nearest | None:
        return nearest(serves.contests, contenders[name], contenders[other], size)

    def faster(name: str, other: str) -> bool:
        comparison = compared(name, other)
        return comparison is not None and comparison.pair.faster == name

    name = fastest([choice.name for choice in rivals], faster)
    if name == first.name or (won := compared(name, first.name)) is None:
        return first
    return replace(next(choice for choice in rivals if choice.name == name), won=won, over=first.run_name)


def _other_gpu(serves: Serves, driver: DriverStatus, runtime: RuntimeOptions) -> str:
    """Return how the benchmark's GPU or runtime options differ from those that will be used; "" if they do not."""
    if not 0 <= runtime.device < len(driver.devices):
        return f"there is no GPU {runtime.device}"
    gpu = driver.devices[runtime.device]
    measured, present = (serves.gpu, serves.compute_capability), (gpu.name, gpu.compute_capability)
    if measured != present:
        return f"it ran on {' '.join(measured)}, and this is {' '.join(present)}"
    if (options := speed_options(runtime)) != dict(serves.runtime):
        return f"engines ran with runtime {dict(serves.runtime)}, and will with {options}"
    return ""


def _log_changed_files(serves: Serves, contenders: dict[str, Contender]) -> None:
    """Log which files changed since they were measured, so that their measurements do not count."""
    for measured in {one.file: one for contest in serves.contests for one in contest.contenders}.values():
        present = contenders.get(measured.file)
        if present is not None and (differences := measured.differences(present)):
            log.debug("the benchmark of %s does not count, the file changed: %s", measured.file, listed(differences))


def _files(
    artifacts: Artifacts, runtime: RuntimeOptions, backend: str, precision: str, verdicts: Verdicts
) -> tuple[list[Selection], list[str]]:
    """Return the files of a precision that can be run, and why the others cannot."""
    if backend != "tensorrt":
        name = ONNX[precision]
        path = artifacts.path(name)
        if not path.is_file():
            return [], [f"{name} is missing"] if verdicts.knows(name) else []
        verdict = verdicts.on(name, backend)
        return [Selection(name, path, backend, precision, verdict.verdict, None, runtime, verdict.why)], []
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
        verdict = verdicts.on(name)
        choices.append(Selection(name, plan, backend, precision, verdict.verdict, profile, runtime, verdict.why))
    return choices, unusable
