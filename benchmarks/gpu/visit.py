"""Implement the steps of a visit to a GPU. The module needs Python 3.10 and numpy alone."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.gpu.checks import Check, CheckFailedError, CheckSkippedError, cycles_leak_nothing
from benchmarks.gpu.forms import time_form
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.record import Record
from benchmarks.gpu.timings import error_text, time_engines, time_peer, why_without_peers
from benchmarks.telemetry import gpu_snapshot, machine
from export.errors import ProjectError
from export.tensorrt.build import build_engine
from export.tensorrt.compatibility import check_engine
from export.tensorrt.driver import driver_status
from export.tensorrt.library import TensorRT
from export.tensorrt.options import BuildOptions
from export.tensorrt.sidecar import BatchProfile, Precision, Sidecar
from pipeline.artifacts.engines import plan_name
from pipeline.artifacts.gpu_evidence import CheckRow, EngineEvidence, Form, Measures, Variant
from pipeline.artifacts.parity_report import Parity, overall_verdict, thresholds_by_precision
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.recipe.schema import VerifyThresholds
from pipeline.runners.cuda.open import find_cuda
from pipeline.runners.open import open_runner
from pipeline.runners.tensorrt.open_engine import OpenEngine
from pipeline.verification.evaluate import evaluate
from pipeline.verification.parity import Candidate, Reference, judge

log = logging.getLogger("benchmarks.gpu")


@dataclass(frozen=True)
class Visit:
    """The actions of a visit's steps, with what they share; see `benchmarks.gpu.plan.Work`.

    Attributes:
        plan: the steps.
        reference: Keras' outputs.
        thresholds: of the recipe.
        trt: the library.
        plans: folder for the engines.
        record: of the results.
    """

    plan: Plan
    reference: Reference
    thresholds: VerifyThresholds
    trt: TensorRT
    plans: Path
    record: Record

    def _engine(self, name: str) -> Path:
        precision, _, variant = name.partition("-")
        return self.plans / plan_name(precision, variant)

    def _form(self, name: str) -> Path:
        form, _, variant = name.rpartition("-")
        return self.plans / form / plan_name("int8", variant)

    def usable(self, names: Sequence[str]) -> list[str]:
        """Return the engines, also of other forms, that were built and can be loaded on this machine."""
        engines = {**self.record.evidence.engines, **self.record.evidence.forms}
        return [name for name in names if name in engines and not engines[name].refused]

    def why_no_peer(self, model: Path) -> str:
        """Return why PyTorch cannot be timed; "" where it can be tried."""
        return why_without_peers(model)

    def look(self) -> None:
        """Describe the machine."""
        self.record.change(machine=machine())
        self._snapshot("machine")

    def _snapshot(self, step: str) -> None:
        """Read clocks and power right after a step."""
        self.record.change(snapshots={**self.record.evidence.snapshots, step: gpu_snapshot()})

    def build(self, precision: Precision, variant: Variant) -> None:
        """Build an engine, and check whether it can be loaded on this machine."""
        name = f"{precision}-{variant}"
        engine = self._build(self.plan.source(precision), self._engine(name), precision, variant)
        self.record.change(engines={**self.record.evidence.engines, name: engine})

    def build_form(self, form: Form, variant: Variant) -> None:
        """Build the engine of another form of the INT8 file."""
        name = f"{form}-{variant}"
        engine = self._build(self.plan.forms[form], self._form(name), "int8", variant)
        self.record.change(forms={**self.record.evidence.forms, name: engine})

    def _build(self, source: Path, plan: Path, precision: Precision, variant: Variant) -> EngineEvidence:
        batch = self.plan.batch(variant)
        sidecar = build_engine(
            source,
            plan,
            precision=precision,
            profile=BatchProfile(1, batch, batch),
            trt=self.trt,
            options=BuildOptions(
                timing_cache=self.plans / "timing.cache" if self.trt.timing_cache else None,
                targets=self.plan.options.targets,
                optimization_level=self.plan.options.level,
            ),
            variant=variant,
        )
        refused, found = self._refused(plan), sidecar.found
        return EngineEvidence(
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
            convolutions=found.convolutions if found else None,
            warnings=sidecar.warnings,
            refused=refused,
            library=self._library_on(plan, sidecar) if refused else "",
            layers=found.count if found else None,
            reformats=len(found.reformats) if found else None,
            activations=len(sidecar.asked.activations) if found and sidecar.asked else None,
            fused_activations=len(found.fused_activations) if found else None,
        )

    def _refused(self, plan: Path) -> str:
        status = driver_status()
        try:
            check_engine(plan, self.trt, status.devices[0].compute_capability, status.cuda_version)
        except ProjectError as error:
            return str(error)
        return ""

    def _library_on(self, plan: Path, sidecar: Sidecar) -> str:
        """Return the library's own error for an engine that this project does not load; it was built just now."""
        try:
            cuda = find_cuda()
            with cuda.scope(0):
                OpenEngine(cuda, self.trt, plan, sidecar, RuntimeOptions()).close()
        except Exception as error:  # the evidence records its message
            return error_text(error)
        return "it loads the engine and runs it"

    def compare(self, precision: Precision, variant: Variant) -> None:
        """Compare an engine's outputs with Keras'."""
        name = f"{precision}-{variant}"
        evidence, opener = self.record.evidence, partial(open_runner, self._engine(name), "tensorrt")
        candidate = Candidate(name, "tensorrt", precision, evidence.engines[name].plan_sha256, None, opener)
        reference = self.reference
        outputs = {
            name: evaluate(
                candidate, reference.pixels, 32, lambda images: None, noise=reference.noise, reference=reference.logits
            )
        }
        judged = judge([candidate], outputs, reference, self.thresholds)
        hops = (*(evidence.parity.hops if evidence.parity else ()), *judged.hops)
        self.record.change(parity=Parity(overall_verdict(hops), thresholds_by_precision(self.thresholds), hops))
        log.info("%s against Keras: %s", name, judged.verdict)

    def time(self, variant: Variant, precisions: Sequence[Precision], measures: Measures) -> None:
        """Time the engines that run on this machine, in turns."""
        plans = {key: self._engine(name) for key in precisions for name in self.usable([f"{key}-{variant}"])}
        pixels, seconds = self.reference.pixels, self.plan.options.seconds
        self.record.add("timings", *time_engines(plans, pixels, variant, self.plan.batch(variant), measures, seconds))
        self._snapshot(f"time {variant} {measures} {'+'.join(precisions)}")

    def contest(self, form: Form, variant: Variant, measures: Measures) -> None:
        """Time the INT8 engine as shipped and that of another form, in turns."""
        shipped, other = self._engine(f"int8-{variant}"), self._form(f"{form}-{variant}")
        batch, seconds = self.plan.batch(variant), self.plan.options.seconds
        row = time_form(form, shipped, other, self.reference.pixels, variant, batch, measures, seconds)
        self.record.add("contests", row)
        self._snapshot(f"time {variant} {measures} {form}")

    def check(self, check: Check, engine: str) -> None:
        """Run a check that needs a GPU on an engine."""
        self._add_check(check.__name__, engine, partial(check, self._engine(engine), self.reference.pixels))

    def cycle(self) -> None:
        """Open and close the smallest engine repeatedly, to find leaks."""
        engines = self.record.evidence.engines
        smallest = min(self.usable(list(engines)), key=lambda name: engines[name].plan_bytes)
        limits = (self.plan.options.cycles, self.plan.options.cycle_seconds)
        check = partial(cycles_leak_nothing, self._engine(smallest), self.reference.pixels, *limits)
        self._add_check(cycles_leak_nothing.__name__, smallest, check)

    def _add_check(self, check: str, engine: str, work: Callable[[], str]) -> None:
        try:
            row = CheckRow(check, engine, "pass", work())
        except CheckSkippedError as skipped:
            row = CheckRow(check, engine, "skipped", str(skipped))
        except CheckFailedError as failed:
            row = CheckRow(check, engine, "fail", str(failed))
        except Exception as error:  # any error of a library: the other checks still run
            row = CheckRow(check, engine, "error", error_text(error))
        log.info("%s, %s: %s (%s)", engine, check.replace("_", " "), row.result, row.detail)
        self.record.add("checks", row)

    def peer(self, mode: str, model: Path, variant: Variant, batch: int) -> None:
        """Time PyTorch beside the FP16 engine."""
        plan = self._engine(f"fp16-{variant}") if self.usable([f"fp16-{variant}"]) else None
        rows = time_peer(mode, model, plan, self.reference.pixels, variant, batch, self.plan.options.seconds)
        self.record.add("timings", *rows)
        self._snapshot(f"PyTorch {mode}, batch {batch}")
