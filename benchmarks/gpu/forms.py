"""Time the INT8 engine as shipped against one of another form of its file, and tell what follows for the recipe.

The module needs Python 3.10 and numpy alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.contests import compare
from benchmarks.gpu.timings import WARM_UP, engine_call, error_text, why_without_graph
from benchmarks.timing import in_turns, measure
from export.errors import ProjectError
from pipeline.artifacts.gpu_evidence import EngineEvidence, Form, FormContest, GpuEvidence, Measures, Variant
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.tensorrt.runner import TensorRTRunner

MOST_SLOWER = 1.03  # a choice that costs more time than this is taken back
ROUNDS = 20
FORM_NAMES: Mapping[Form, str] = {"plain": "not shifted", "trunk-fp16": "with a trunk of FP16"}
# What each form decides: the choice of the quantize stage that it undoes, and the recipe key that takes it back.
_CHOICES: Mapping[Form, tuple[str, str]] = {
    "plain": ("the shift behind a ReLU", "quantize.shift: conv, and measure again, or never"),
    "trunk-fp16": ("quantize.trunk: fp32", "quantize.trunk: fp16"),
}


def time_form(
    form: Form,
    shipped: Path,
    other: Path,
    pixels: np.ndarray,
    variant: Variant,
    batch: int,
    measures: Measures,
    seconds: float,
) -> FormContest:
    """Time two INT8 engines in turns.

    Args:
        form: of the other engine's file.
        shipped: the engine as shipped.
        other: the engine of the other form.
        pixels: uint8, (N, height, width, 3); repeated where a batch has more images.
        variant: of both engines.
        batch: images a batch.
        measures: "compute" or "infer".
        seconds: measured time of each, host to host; "compute" takes a fixed number of calls.

    Returns:
        FormContest: the ratio of their times, by rounds, or why there is none.
    """
    images = pixels[np.arange(batch) % len(pixels)]
    try:
        with ExitStack() as stack:
            runners = {
                name: stack.enter_context(TensorRTRunner(plan, RuntimeOptions(graphs=True)))
                for name, plan in (("other", other), ("shipped", shipped))
            }
            calls = {name: engine_call(runner, images, measures, batch) for name, runner in runners.items()}
            times = (
                in_turns(calls, ROUNDS)
                if measures == "compute"
                else measure(calls, seconds_each=seconds, warmup_seconds=min(WARM_UP, seconds), rounds=ROUNDS)
            )
            for runner in runners.values():
                if why := why_without_graph(runner, batch):
                    raise ProjectError(why)
        found = compare(times["other"], times["shipped"])
        if found.ratio is None:
            raise ProjectError("the clock is too coarse for these calls")
    except Exception as error:  # any error of a library: the record says it, and the other steps still run
        return FormContest(form, variant, batch, measures, error=error_text(error))
    interval = None if found.interval is None else (round(found.interval[0], 4), round(found.interval[1], 4))
    shipped_ms, form_ms = (float(f"{np.median(times[name].samples_ms):.4g}") for name in ("shipped", "other"))
    return FormContest(
        form, variant, batch, measures, found.rounds, shipped_ms, form_ms, round(found.ratio, 4), interval
    )


def verdict(form: Form, contests: Iterable[FormContest]) -> str:
    """Return what the contests of a form say about the recipe, as a sentence; "" where none has an interval.

    A choice is taken back only where it is decidedly more than 3 % slower: with the whole interval above.
    """
    rows = [row for row in contests if row.form == form and row.interval is not None]
    if not rows:
        return ""
    choice, instead = _CHOICES[form]
    slower = [row for row in rows if row.interval is not None and row.interval[0] > MOST_SLOWER]
    if slower:
        worst = max(slower, key=lambda row: row.ratio or 0.0)
        where = f"batch {worst.batch}, {'the engine alone' if worst.measures == 'compute' else 'host to host'}"
        return f"{choice} costs more than 3 % ({where}: {_percent(worst)}): set {instead}."
    if all(row.interval is not None and row.interval[1] <= MOST_SLOWER for row in rows):
        return f"Keep {choice}: it costs at most 3 %."
    return f"Keep {choice}: whether it costs more than 3 % is not decided."


def _percent(row: FormContest) -> str:
    low, high = row.interval or (0.0, 0.0)
    return f"{100 * ((row.ratio or 1.0) - 1):+.1f} %, 95 % from {100 * (low - 1):+.1f} to {100 * (high - 1):+.1f}"


def contest_rows(contests: Sequence[FormContest]) -> list[tuple[str, ...]]:
    """Return the rows of a table: form, batch, what was measured, both times, the ratio and its interval."""
    return [
        (
            FORM_NAMES[row.form],
            str(row.batch),
            "the engine alone" if row.measures == "compute" else "host to host",
            f"{row.shipped_ms:.4g}",
            f"{row.form_ms:.4g}",
            f"{row.ratio:.3f}",
            "–" if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}",
        )
        for row in contests
        if not row.error
    ]


def form_engine_rows(evidence: GpuEvidence) -> list[tuple[str, ...]]:
    """Return a row for each INT8 engine that has another form: layers, and convolutions with their activation."""
    variants = dict.fromkeys(engine.variant for engine in evidence.forms.values())
    named = [
        *((f"as shipped, {variant}", evidence.engines.get(f"int8-{variant}")) for variant in variants),
        *((f"{FORM_NAMES[form]}, {variant}", evidence.forms.get(f"{form}-{variant}"))
          for form in FORM_NAMES for variant in variants),
    ]  # fmt: skip
    return [(name, *_counts(engine)) for name, engine in named if engine is not None]


def _counts(engine: EngineEvidence) -> tuple[str, ...]:
    known = engine.activations is not None and engine.fused_activations is not None
    fused = f"{engine.fused_activations} of {engine.activations}" if known else "–"
    return (*("–" if value is None else str(value) for value in (engine.layers, engine.reformats)), fused)
