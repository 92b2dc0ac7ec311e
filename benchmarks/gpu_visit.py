"""What a visit to a GPU does, step by step, most worth first. Python 3.10 syntax, numpy alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.gpu_checks import CHECKS, QUICK, Check, CheckFailedError, CheckSkippedError, cycles_leak_nothing
from benchmarks.gpu_options import Options
from benchmarks.gpu_record import Record
from benchmarks.gpu_steps import Planned, with_reason
from benchmarks.gpu_timings import WARM_UP, time_engines, time_peer, why_without_peers, words_of
from benchmarks.telemetry import gpu_snapshot, machine
from export.build_options import BuildOptions
from export.capabilities import TensorRT
from export.driver import driver_status
from export.engine import build_engine
from export.engine_check import check_engine
from export.errors import ExportError
from export.sidecar import BatchProfile, Sidecar
from pipeline.answering import answer
from pipeline.gpu_evidence import CheckRow, EngineEvidence, Measures, Parity, Variant
from pipeline.layout import ONNX, TENSORRT8, Precision, engine_source, plan_name
from pipeline.parity import Candidate, Reference, judge
from pipeline.parity_report import by_precision, overall_verdict
from pipeline.recipe import VerifyThresholds
from pipeline.runners.cuda import find_cuda
from pipeline.runners.opened import OpenEngine
from pipeline.runners.options import RuntimeOptions
from pipeline.runners.tensorrt import TensorRTRunner

log = logging.getLogger("benchmarks.gpu")

MAIN: tuple[Precision, ...] = ("fp16", "int8")  # what the targets are about; FP32 comes behind them
MEASURES: dict[Variant, tuple[Measures, ...]] = {
    "throughput": ("compute", "infer", "stream", "stream pinned"),
    "latency": ("infer", "compute"),
}
# Guesses for a ResNet-50, in seconds; they are corrected by what is measured. TensorRT times kernels on the GPU while
# it builds, the more of them the higher the level; TensorRT-RTX compiles when an engine is opened.
BUILD_BY_LEVEL = (10.0, 20.0, 40.0, 90.0, 150.0, 300.0)
DEFAULT_LEVEL = 3
BUILD_RTX, OPEN, CHECK, PARITY = 10.0, 2.0, 5.0, 5.0
# Smaller and larger models build in proportion to their ONNX files, within limits: the layers count too.
RESNET50_BYTES: dict[Precision, float] = {"fp32": 102e6, "fp16": 51e6, "int8": 51e6}
LEAST, MOST = 0.1, 4.0
PEERS = {"eager": 10.0, "graphs": 15.0, "compile": 120.0}


class Visit:
    """The steps of a visit, and what they share.

    Args:
        options: what was asked for.
        reference: Keras' answers.
        thresholds: of the recipe.
        trt: the library.
        plans: folder for the engines.
        record: where everything that is seen is written.
    """

    def __init__(
        self,
        options: Options,
        reference: Reference,
        thresholds: VerifyThresholds,
        trt: TensorRT,
        plans: Path,
        record: Record,
    ) -> None:
        self.options, self.reference, self.thresholds = options, reference, thresholds
        self.trt, self.plans, self.record = trt, plans, record

    def steps(self) -> list[Planned]:
        """All steps, in the order of their worth."""
        options = self.options
        steps = [Planned("machine", "machine", 1.0, self._machine)]
        groups: list[tuple[Variant, tuple[Precision, ...]]] = [
            *((variant, tuple(one for one in MAIN if one in options.precisions)) for variant in options.variants),
            *((variant, tuple(one for one in options.precisions if one not in MAIN)) for variant in options.variants),
        ]
        for variant, precisions in groups:
            steps += self._group(variant, precisions)
        return [*steps, *self._checks(), *self._peers()]

    def _group(self, variant: Variant, precisions: tuple[Precision, ...]) -> list[Planned]:
        """Build engines of a variant, compare them with Keras, and time them in turns."""
        there = tuple(one for one in precisions if self._source(one).is_file())
        absent = [one for one in precisions if one not in there]
        times = [step for measures in MEASURES[variant] for step in self._times(variant, there, measures)]
        builds, parities = [], []
        for precision in precisions:
            name = f"{precision}-{variant}"
            build = Planned(
                *(f"build {name}", "build", self._build_seconds(precision), partial(self._build, precision, variant)),
                leads_to=tuple(step.name for step in times[:1]),
            )
            if precision in absent:
                builds.append(with_reason(build, self._why_absent(precision)))
                continue
            builds.append(build)
            compare = partial(self._compare, precision, variant)
            parities.append(Planned(f"parity {name}", "parity", PARITY, compare, partial(self._why_not, [name])))
        return [*builds, *parities, *times]

    def _times(self, variant: Variant, precisions: tuple[Precision, ...], measures: Measures) -> list[Planned]:
        """One step, in which the engines take turns; of page-locked memory one for each engine."""
        alone = measures == "stream pinned"
        steps = []
        for group in [(one,) for one in precisions] if alone else [precisions] if precisions else []:
            rows = len(group) * (2 if measures == "infer" else 1)
            work = partial(self._time, variant, group, measures)
            names = [f"{one}-{variant}" for one in group]
            # Calls that measure themselves are a fixed number, about as long.
            seconds = rows * (OPEN + WARM_UP + self.options.seconds)
            name = f"time {variant} {measures} {'+'.join(group)}"
            steps.append(Planned(name, f"time {measures}", seconds, work, partial(self._why_not, names)))
        return steps

    def _checks(self) -> list[Planned]:
        options = self.options
        if options.checks == "none":
            return []
        engines = [
            f"{precision}-{variant}"
            for precision in (*MAIN, "fp32")
            for variant in options.variants
            if precision in options.precisions and self._source(precision).is_file()
        ]
        steps = []
        for check in QUICK if options.checks == "quick" else CHECKS:
            name = check.__name__.replace("_", " ")
            steps += [
                Planned(f"check {one}: {name}", f"check {name}", CHECK, partial(self._check, check, one),
                        partial(self._why_not, [one]))
                for one in engines
            ]  # fmt: skip
        cycles = Planned("leak cycles", "cycles", options.cycle_seconds, self._cycle, partial(self._why_not, engines))
        return [*steps, cycles] if engines else steps

    def _peers(self) -> list[Planned]:
        options = self.options
        model = options.artifacts / ONNX["fp32"]
        return [
            Planned(
                *(f"PyTorch {mode}, batch {batch}", f"PyTorch {mode}", PEERS[mode] + 4 * options.seconds),
                *(partial(self._peer, mode, model, variant, batch), partial(why_without_peers, model)),
            )
            for mode in options.peers
            for variant, batch in ((one, self._batch(one)) for one in options.variants)
        ]

    def _batch(self, variant: Variant) -> int:
        return self.options.batch if variant == "throughput" else 1

    def _source_name(self, precision: str) -> str:
        return engine_source(precision, self.trt.strongly_typed)

    def _source(self, precision: str) -> Path:
        return self.options.artifacts / self._source_name(precision)

    def _why_absent(self, precision: str) -> str:
        name = self._source_name(precision)
        made = "; the recipe makes it with quantize.tensorrt8: true" if name in TENSORRT8.values() else ""
        return f"{name} is not in the folder{made}"

    def _plan(self, name: str) -> Path:
        precision, _, variant = name.partition("-")
        return self.plans / plan_name(precision, variant)

    def _build_seconds(self, precision: Precision) -> float:
        level = DEFAULT_LEVEL if self.options.level is None else self.options.level
        seconds = BUILD_RTX if self.trt.flavour == "rtx" else BUILD_BY_LEVEL[level]
        source = self._source(precision)
        share = source.stat().st_size / RESNET50_BYTES[precision] if source.is_file() else 1.0
        return seconds * min(max(share, LEAST), MOST)

    def _usable(self, names: Sequence[str]) -> list[str]:
        engines = self.record.evidence.engines
        return [name for name in names if name in engines and not engines[name].refused]

    def _why_not(self, names: Sequence[str]) -> str:
        """Why none of these engines can be used; "" where one can."""
        return "" if self._usable(names) else f"there is no engine {' or '.join(names)} that runs here"

    def _machine(self) -> None:
        self.record.change(machine=machine())
        self._snapshot("machine")

    def _snapshot(self, step: str) -> None:
        """Read clocks and power right after a step."""
        self.record.change(snapshots={**self.record.evidence.snapshots, step: tuple(gpu_snapshot())})

    def _build(self, precision: Precision, variant: Variant) -> None:
        name, batch = f"{precision}-{variant}", self._batch(variant)
        plan = self._plan(name)
        sidecar = build_engine(
            self._source(precision),
            plan,
            precision=precision,
            profile=BatchProfile(1, batch, batch),
            trt=self.trt,
            options=BuildOptions(
                timing_cache=self.plans / "timing.cache" if self.trt.timing_cache else None,
                targets=self.options.targets,
                optimization_level=self.options.level,
            ),
            variant=variant,
        )
        refused = self._refused(plan)
        found = EngineEvidence(
            precision=precision,
            variant=variant,
            profile=sidecar.profile,
            flavour=sidecar.flavour,
            tensorrt_version=sidecar.tensorrt_version,
            onnx_sha256=sidecar.onnx_sha256,
            plan_sha256=sidecar.plan_sha256,
            plan_bytes=sidecar.plan_bytes,
            seconds=sidecar.seconds,
            options={key: value for key, value in sidecar.options.items() if key != "timing_cache"},
            network_layers=sidecar.network_layers,
            asked_convolutions=sidecar.asked.convolutions if sidecar.asked else {},
            convolutions=sidecar.found.convolutions if sidecar.found else None,
            warnings=sidecar.warnings,
            refused=refused,
            library=self._library_on(plan, sidecar) if refused else "",
        )
        self.record.change(engines={**self.record.evidence.engines, name: found})

    def _refused(self, plan: Path) -> str:
        status = driver_status()
        try:
            check_engine(plan, self.trt, status.devices[0].compute_capability, status.cuda_version)
        except ExportError as error:
            return str(error)
        return ""

    def _library_on(self, plan: Path, sidecar: Sidecar) -> str:
        """What the library itself says of an engine that this project does not load: built here, just now."""
        try:
            cuda = find_cuda()
            with cuda.scope(0):
                OpenEngine(cuda, self.trt, plan, sidecar, RuntimeOptions()).close()
        except Exception as error:  # its words are what is wanted
            return words_of(error)
        return "it loads the engine and runs it"

    def _compare(self, precision: Precision, variant: Variant) -> None:
        name = f"{precision}-{variant}"
        plan, known = self._plan(name), self.record.evidence
        sha256 = known.engines[name].plan_sha256
        candidate = Candidate(name, "tensorrt", precision, sha256, None, lambda: TensorRTRunner(plan))
        answers = {name: answer(candidate, self.reference.pixels, 32, lambda images: None)}
        judged = judge([candidate], answers, self.reference, self.thresholds)
        hops = (*(known.parity.hops if known.parity else ()), *judged.hops)
        self.record.change(parity=Parity(overall_verdict(hops), by_precision(self.thresholds), hops))
        log.info("%s against Keras: %s", name, judged.verdict)

    def _time(self, variant: Variant, precisions: Sequence[str], measures: Measures) -> None:
        usable = self._usable([f"{one}-{variant}" for one in precisions])
        plans = {name.partition("-")[0]: self._plan(name) for name in usable}
        batch = self._batch(variant)
        rows = time_engines(plans, self.reference.pixels, variant, batch, measures, self.options.seconds)
        self.record.add("timings", *rows)
        self._snapshot(f"time {variant} {measures} {'+'.join(precisions)}")

    def _check(self, check: Check, name: str) -> None:
        self._add_check(check.__name__, name, partial(check, self._plan(name), self.reference.pixels))

    def _cycle(self) -> None:
        built = {name: self.record.evidence.engines[name] for name in self._usable(list(self.record.evidence.engines))}
        smallest = min(built, key=lambda name: built[name].plan_bytes)
        cycles, seconds = self.options.cycles, self.options.cycle_seconds
        check = partial(cycles_leak_nothing, self._plan(smallest), self.reference.pixels, cycles, seconds)
        self._add_check(cycles_leak_nothing.__name__, smallest, check)

    def _add_check(self, check: str, engine: str, work: Callable[[], str]) -> None:
        try:
            row = CheckRow(check, engine, "pass", work())
        except CheckSkippedError as skipped:
            row = CheckRow(check, engine, "skipped", str(skipped))
        except CheckFailedError as failed:
            row = CheckRow(check, engine, "fail", str(failed))
        except Exception as error:  # whatever a library raises: the other checks are to be made all the same
            row = CheckRow(check, engine, "error", words_of(error))
        log.info("%s, %s: %s (%s)", engine, check.replace("_", " "), row.result, row.detail)
        self.record.add("checks", row)

    def _peer(self, mode: str, model: Path, variant: Variant, batch: int) -> None:
        plan = self._plan(f"fp16-{variant}") if self._usable([f"fp16-{variant}"]) else None
        rows = time_peer(mode, model, plan, self.reference.pixels, variant, batch, self.options.seconds)
        self.record.add("timings", *rows)
        self._snapshot(f"PyTorch {mode}, batch {batch}")
