"""Time the models and engines of a recipe: ``python -m benchmarks``."""

import argparse
import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.contests import contest_lines, find_serves
from benchmarks.scenarios import installed, open_scenario, run_scenarios, scenarios
from benchmarks.telemetry import commit, gpu_snapshot, machine
from benchmarks.timing import measure
from export.errors import ProjectError
from export.words import aligned
from pipeline.artifacts.benchmark_report import BenchmarkReport, BenchmarkRow, TimedModel
from pipeline.artifacts.engines import profiles
from pipeline.artifacts.files import recipe_lock, write_json
from pipeline.artifacts.inputs import Inputs, Required
from pipeline.artifacts.machine import describe_cpu
from pipeline.artifacts.paths import BENCHMARK, CARD, KERAS
from pipeline.cli import options
from pipeline.models.model_card import read_card
from pipeline.recipe.schema import Recipe
from pipeline.stages.declared import ENGINES, ONNX_FILES
from pipeline.terminal.command_line import Parser
from pipeline.terminal.console import progress_bar
from pipeline.terminal.processes import end_with_parent
from pipeline.workflow.environment import runtime_environment
from pipeline.workflow.stage import Stage, execute, reasons_to_run

log = logging.getLogger(__name__)

EXAMPLES = """examples:
  python -m benchmarks -c digits
  python -m benchmarks --set 'benchmark.batches=[1,8,32]' --set benchmark.seconds=5 --force
"""


@dataclass(frozen=True)
class Benchmarked:
    """The manifest's record of a benchmark: the number of rows, and the names of those that failed."""

    rows: int
    failed: tuple[str, ...] = ()


def run_benchmark(inputs: Inputs, settings: Recipe, out: Path) -> Benchmarked:
    """Write ``benchmark.json``: times of Keras, ONNX Runtime and, with a GPU, TensorRT, at the recipe's batch sizes.

    It also holds which of the files that the GPU ran is fastest at each batch size.
    """
    limits = settings.benchmark
    largest = sorted(profile.max for profile in profiles(settings.build).values())
    selected = installed(scenarios(inputs, limits.batches or tuple(dict.fromkeys((1, *largest)))))
    card = read_card(inputs.path(CARD))
    timing = partial(
        measure,
        seconds_each=limits.seconds,
        warmup_seconds=limits.warmup_seconds,
        min_samples=limits.min_samples,
    )
    before = gpu_snapshot()
    with progress_bar(
        total=100 * len(selected), desc="  benchmark", bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}"
    ) as bar:
        done: dict[str, int] = {}

        def progress(name: str, percent: int, _: int) -> None:
            bar.set_postfix_str(name)
            bar.update(percent - done.get(name, 0))
            done[name] = percent

        opener = partial(open_scenario, runtime=settings.runtime, card=card, allow=settings.model.allow)
        results = run_scenarios(selected, opener, card.size, timing, progress)
    content = BenchmarkReport(
        recipe=settings.name,
        model=TimedModel(card.size, len(card.classes)),
        machine=machine(),
        commit=commit(),
        gpu_before=before,
        gpu_after=gpu_snapshot(),
        results=tuple(results),
        serves=find_serves(inputs, results, settings.runtime),
    )
    write_json(out / Path(BENCHMARK).name, content)
    log.info("%s", "\n".join([table(results), *contest_lines(content.serves)]))
    return Benchmarked(len(results), tuple(f"{row.backend} {row.name}" for row in results if row.error is not None))


def table(results: Sequence[BenchmarkRow]) -> str:
    """Return the results as text, with the speed relative to Keras at the same batch size."""
    keras = {row.batch: row.p50_ms for row in results if row.backend == "keras"}
    cells: list[tuple[str, ...]] = [("backend", "prec.", "batch", "p50 ms", "p90 ms", "p99 ms", "img/s", "x Keras")]
    for row in results:
        head = (row.backend, row.name, str(row.batch))
        if row.error is not None or row.p50_ms is None:
            cells.append((*head, f"failed: {row.error}"))
            continue
        base = keras.get(row.batch)
        ratio = f"{base / row.p50_ms:.2f}" if base and row.p50_ms else ""
        speed = "" if row.images_per_second is None else f"{row.images_per_second:.1f}"
        cells.append((*head, f"{row.p50_ms:.3f}", f"{row.p90_ms:.3f}", f"{row.p99_ms:.3f}", speed, ratio))
    engines = [
        f"  {row.name} on {row.backend}, batch {row.batch}: {row.compute.p50_ms:.3f} of {row.p50_ms:.3f} ms are the "
        "engine alone"
        for row in results
        if row.compute is not None
    ]
    refused = [
        f"  {row.name} on {row.backend}, batch {row.batch}: {row.refused_graph}" for row in results if row.refused_graph
    ]
    notes = dict.fromkeys(f"  {row.name} on {row.backend}: {row.caveat}" for row in results if row.caveat)
    return "\n".join([*aligned(cells, right=range(2, 8)), *engines, *refused, *notes])


def _environment(settings: Recipe) -> dict[str, object]:
    packages = {"keras": "installed"} if importlib.util.find_spec("keras") else {}
    return runtime_environment(settings) | packages | {"cpu": str(describe_cpu())}


STAGE = Stage(
    "benchmark",
    inputs=(Required(KERAS), Required(CARD), *ONNX_FILES, *ENGINES),
    keys=("name", "benchmark", "build.profile", "build.variants", "runtime", "model.allow"),
    run=run_benchmark,
    result=Benchmarked,
    environment=_environment,
)


def build_parser() -> Parser:
    """Return the parser of the command line."""
    return Parser(
        prog="python -m benchmarks",
        description="Time a recipe's model: Keras, ONNX Runtime and TensorRT engines, in turns against each other.",
        parents=[options.recipe_options(), options.stage_options()],
        epilog=f"{EXAMPLES}\n{options.EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    end_with_parent()
    return options.run_command(build_parser(), argv, _benchmark)


def _benchmark(args: argparse.Namespace) -> dict[str, object]:
    context = options.make_context(args)
    if args.explain:
        reasons = ["--force"] if args.force else reasons_to_run(STAGE, context)
        print(f"benchmark {'would run: ' + '; '.join(reasons) if reasons else 'up to date'}")
        return {"recipe": context.recipe.name, "explain": {"benchmark": reasons}}
    with recipe_lock(context.root, wait=not args.no_wait):
        if (context.root / CARD).is_file():
            context.card()  # refuses a recipe that contradicts the model, up to date or not
        outcome = execute(STAGE, context, args.force)
    if outcome.ran and not STAGE.recorded(context, outcome.manifest).rows:
        raise ProjectError(f"Expected something to time below {context.root}. Received: nothing.")
    return {
        "recipe": context.recipe.name,
        "status": "done" if outcome.ran else "up to date",
        **outcome.manifest.result,
    }
