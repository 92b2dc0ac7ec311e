"""What a visit to a GPU would do with a folder, told where there is no GPU. Python 3.10 syntax, numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_folder import altered_files, as_verified, has_verdict, read_reference, read_thresholds
from benchmarks.gpu_options import MAIN, Options, check_artifacts, refuse_missing_sources
from benchmarks.gpu_plan import Estimates, Plan, Planned, too_long
from export.sidecar import Precision
from pipeline.layout import REFERENCE
from pipeline.manifest import INDEX
from pipeline.plans import engine_source
from pipeline.words import count

STRONG, RTX, OLDER = "TensorRT 10 and later", "TensorRT-RTX", "TensorRT 8.6"


class DryRun:
    """What is foreseen of the steps by first guesses; neither a library nor a driver is asked, and nothing is done.

    Attributes:
        why: why a step would be left out, by its name; "" where it would be made.
    """

    def __init__(self) -> None:
        self.why: dict[str, str] = {}

    def foresee(self, plan: Plan) -> list[tuple[Planned, str]]:
        """Every step, and why it would be left out; "" where it would be made."""
        steps, minutes = plan.steps(self), plan.options.minutes
        by_name, estimates = {step.name: step for step in steps}, Estimates()
        left = None if minutes is None else minutes * 60
        for step in steps:
            self.why[step.name] = step.why_not() or too_long(step, by_name, estimates, left)
            if left is not None and not self.why[step.name]:
                left -= step.seconds
        return [(step, self.why[step.name]) for step in steps]

    def usable(self, names: Sequence[str]) -> list[str]:
        """Those that would be built."""
        return [name for name in names if not self.why[f"build {name}"]]

    def why_no_peer(self, model: Path) -> str:
        """Whether PyTorch is there is seen where the GPU is."""
        return "" if model.is_file() else f"it needs {model.parent.name}/{model.name}, which is not there"

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    look = build = compare = time = check = cycle = peer = _nothing


def foresee(options: Options) -> list[str]:
    """Check the folder, and say in lines of text what a visit would do with it.

    Raises:
        ProjectError: nothing can be measured with it.
    """
    check_artifacts(options)
    folder = options.artifacts
    images = len(read_reference(folder).pixels)
    read_thresholds(folder)  # a damaged verdict is refused
    strong = options.flavour == "rtx" or bool(_served(options, True, MAIN)) or not _served(options, False, MAIN)
    library = RTX if options.flavour == "rtx" else STRONG if strong else OLDER
    refuse_missing_sources(options, library, strong)
    sources = {engine_source(one, strongly_typed) for one in options.precisions for strongly_typed in (True, False)}
    altered = altered_files(folder, [name for name in sorted({*sources, REFERENCE}) if (folder / name).is_file()])
    compared = "as the bundle recorded them" if (folder / INDEX).is_file() else f"compared with nothing: no {INDEX}"
    compared = f"not as the bundle recorded: {', '.join(altered)}" if altered else compared
    answers = "as the verify stage wrote them" if as_verified(folder) else "not the file that the verify stage wrote"
    return [
        f"{folder.resolve()}:",
        f"  files: {compared}",
        f"  Keras' answers: {count(images, 'test image')}, {answers}",
        f"  thresholds: {'of the recipe' if has_verdict(folder) else 'the defaults, as the folder has no verdict'}",
        f"  for {STRONG}, and {RTX}: {_served_words(options, True)}",
        f"  for {OLDER}: {_served_words(options, False)}",
        *_plan_lines(options, library, strong),
    ]


def _served(options: Options, strongly_typed: bool, precisions: Sequence[Precision]) -> list[str]:
    """The precisions whose ONNX files are there for this TensorRT."""
    return [one for one in precisions if (options.artifacts / engine_source(one, strongly_typed)).is_file()]


def _served_words(options: Options, strongly_typed: bool) -> str:
    there = _served(options, strongly_typed, options.precisions)
    absent = [one for one in options.precisions if one not in there]
    made = "" if strongly_typed or "fp32" in absent else ", which quantize.tensorrt8: true makes"
    without = f"; no {', '.join(absent)}{made}" if absent else ""
    return f"{', '.join(there) or 'nothing'}{without}"


def _plan_lines(options: Options, library: str, strongly_typed: bool) -> list[str]:
    flavour = "rtx" if library == RTX else "tensorrt"
    plan = Plan(options, flavour, strongly_typed)
    foreseen = DryRun().foresee(plan)
    unlimited = DryRun().foresee(replace(plan, options=replace(options, minutes=None)))
    whole = [step.seconds for step, why in unlimited if not why]
    fits = sum(not why for _, why in foreseen)
    limit = "" if options.minutes is None else f"; into the {options.minutes:g} asked for fit {fits}"
    return [
        f"planned for {library}, by first guesses:",
        *(
            f"  left out  {step.name}: {why}" if why else f"{step.seconds:8.0f} s  {step.name}"
            for step, why in foreseen
        ),
        f"{count(len(whole), 'step')} in about {sum(whole) / 60:.1f} minutes{limit}",
    ]
