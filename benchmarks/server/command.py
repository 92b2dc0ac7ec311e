"""Measure the server: ``python -m benchmarks.server``."""

import argparse
import logging
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.inference.photos import find_photos
from benchmarks.inference.process import without_folders
from benchmarks.server.load import Plan
from benchmarks.server.markdown import as_markdown
from benchmarks.server.record import Run, ServerReport
from benchmarks.server.routes import CLASSIFY, V2_FILES, V2_PIXELS, make_routes
from benchmarks.server.scenario import Scenario, run_scenario, serve_words
from benchmarks.telemetry import commit, machine
from export.errors import DataError, ProjectError
from export.records import read_record, to_json
from export.words import count
from pipeline.artifacts.files import write_json
from pipeline.artifacts.machine import Machine, versions_of
from pipeline.artifacts.output import check_output
from pipeline.cli import options
from pipeline.stages.infer import sample_images
from pipeline.terminal.command_line import Parser, positive
from pipeline.workflow.context import Context

log = logging.getLogger(__name__)

OPEN = "open-loop"
SCENARIOS = (CLASSIFY, V2_FILES, V2_PIXELS, OPEN)
PACKAGES = (
    "fastapi",
    "starlette",
    "pydantic",
    "uvicorn",
    "httptools",
    "uvloop",
    "python-multipart",
    "prometheus-client",
)
TOP_K = 5
SHARE = 0.5  # of the closed loop's rate, at which requests of the open loop arrive
FILLED = 0.9  # of the longest time of an open loop
QUICK = 200  # requests
EXAMPLES = """examples:
  python -m benchmarks.server -c digits --output benchmarks/results/server.json
  python -m benchmarks.server -c imagenet --photos /data/photos --requests 2000 --only classify,open-loop
  python -m benchmarks.server -c digits --serve="--precision int8 --max-delay-ms 5"
  python -m benchmarks.server --show benchmarks/results/server.json

scenarios, each with a server of its own:
  classify    POST /classify with the bytes of an image, a fixed number of requests at a time
  v2-files    the same over the Open Inference Protocol, the image file as a BYTES tensor
  v2-pixels   decoded pixels as a UINT8 tensor
  open-loop   POST /classify at random times (Poisson), at half the rate of classify, or at --rate

Every answer is compared with that of the same picture alone: the best class is the same, probabilities differ by 0.0001
at most. The verdict is passed if none is wrong, none is lost and the memory stays flat.
"""


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m benchmarks.server",
        description="Send many requests to `python -m pipeline serve`, and compare every answer.",
        parents=[options.recipe_options()],
        epilog=f"{EXAMPLES}\n{options.EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="images to send; default: the recipe's test images"
    )
    parser.add_argument(
        "--only", default=",".join(SCENARIOS), metavar="NAMES", help="scenarios, with commas; default: %(default)s"
    )
    for option, number, what in (
        ("--requests", 10_000, "requests of each scenario"),
        ("--concurrency", 64, "requests at a time, at most"),
        ("--pictures", 500, "different images, at most"),
        ("--minutes", 30, "minutes of a scenario, at most; requests that were not sent by then are lost"),
    ):
        parser.add_argument(option, type=positive, default=number, metavar="N", help=f"{what}; default: %(default)s")
    parser.add_argument(
        "--rate", type=positive, metavar="N", help="requests a second of open-loop; default: half the rate of classify"
    )
    parser.add_argument(
        "--most-growth",
        type=positive,
        default=16,
        metavar="MIB",
        help="growth of the server's memory from 20 %% of the requests on that passes; default: %(default)s",
    )
    parser.add_argument(
        "--serve",
        default="",
        metavar="OPTIONS",
        help="further options of `serve` as one word, such as --serve='--queue 64'",
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} requests each, to try the command; no figures")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="JSON file to write, whole after each scenario"
    )
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="print the tables of such a file, and measure nothing"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return options.run_command(build_parser(), argv, _server)


def _server(args: argparse.Namespace) -> dict[str, object]:
    if args.show is not None:
        shown = read_record(ServerReport, args.show, remedy="Measure again with --output.", what="record of the server")
        print(as_markdown(shown), end="")
        return {"output": str(args.show)}
    names = _scenarios(args.only)
    if OPEN in names and CLASSIFY not in names and args.rate is None:
        raise ProjectError(
            f"Expected --rate for {OPEN} without {CLASSIFY}. Received: none. Name one, or both scenarios."
        )
    if args.output is not None:
        check_output(args.output, "--output", "server.json", (".json",))
    context = options.make_context(args)
    card, words = context.card(), _words(args.serve)
    routes = make_routes(context.recipe.name, card, TOP_K)
    pictures = _pictures(context, args.photos, args.pictures)
    plan = Plan(QUICK if args.quick else args.requests, args.concurrency, most_seconds=60.0 * args.minutes)
    report = ServerReport(
        machine=_machine(),
        commit=commit(),
        load_before=round(os.getloadavg()[0], 2),
        model=context.recipe.name,
        input_size=card.size,
        answered_by={},
        options=tuple(map(without_folders, words)),
    )
    for name in names:
        route = routes[CLASSIFY if name == OPEN else name]
        planned = _open_loop(plan, _rate(args.rate, report.runs)) if name == OPEN else plan
        scenario = Scenario(name, route, planned, args.most_growth)
        run, answer = run_scenario(scenario, serve_words(context, words), routes, pictures)
        by = {key: str(value) for key, value in answer.answered_by.items()}
        report = replace(report, runs=(*report.runs, run), answered_by=by)
        if args.output is not None:
            write_json(args.output, to_json(report))
    for line in as_markdown(report).splitlines():
        log.info("%s", line)
    return _result(report, args.output)


def _result(report: ServerReport, output: Path | None) -> dict[str, object]:
    outcomes = {run.name: run.outcome for run in report.runs}
    worst = next((kind for kind in ("failed", "not decided") if kind in outcomes.values()), "passed")
    if worst == "not decided":
        log.warning("not every limit was judged: send more requests, so that the memory is looked at often enough")
    return {
        "output": None if output is None else str(output),
        "verdict": worst,
        "scenarios": {
            run.name: {
                "verdict": run.outcome,
                "requests": run.requests,
                "wrong": run.wrong,
                "lost": sum(run.lost.values()),
                "refused": run.refused,
                "requests_per_second": run.requests_per_second,
                "p50_ms": run.latency.p50_ms,
                "p99_ms": run.latency.p99_ms,
                "growth_mib": run.memory.growth_mib,
            }
            for run in report.runs
        },
        "exit": options.VERDICT_FAIL if worst == "failed" else options.DONE,
    }


def _open_loop(plan: Plan, rate: float) -> Plan:
    """Return the plan of an open loop, of no more requests than arrive in its time."""
    fit = max(1, int(FILLED * plan.most_seconds * rate))
    if fit < plan.requests:
        log.warning("%s: %s of %s arrive in the time (--minutes)", OPEN, count(fit, "request"), f"{plan.requests:,}")
    return replace(plan, requests=min(fit, plan.requests), rate=rate)


def _rate(given: int | None, runs: Sequence[Run]) -> float:
    if given is not None:
        return float(given)
    closed: Mapping[str, Run] = {run.name: run for run in runs}
    if not closed[CLASSIFY].requests_per_second:
        raise ProjectError(
            f"Expected answers in {CLASSIFY}, half of whose rate {OPEN} takes. Received: none. See above."
        )
    return SHARE * closed[CLASSIFY].requests_per_second


def _machine() -> Machine:
    """Describe the machine, with the versions of what serves."""
    described = machine()
    return replace(described, packages={**described.packages, **versions_of(PACKAGES)})


def _pictures(context: Context, folder: Path | None, most: int) -> list[bytes]:
    """Return the image files of a folder, or those of the recipe's test images."""
    if folder is not None:
        files = [path.read_bytes() for path in find_photos(folder)[:most]]
    else:
        with tempfile.TemporaryDirectory() as made:
            files = [path.read_bytes() for path in sample_images(context.images, most, Path(made) / "images")]
    different = list(dict.fromkeys(files))
    if len(different) < 2:
        raise DataError(
            f"Expected two different images or more, so that a mixed-up answer shows. Received: {len(different)} in "
            f"{folder or 'the test images'}. Name another folder after --photos."
        )
    return different


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ProjectError(f"--serve: expected words as a shell takes them. Received: {text!r}: {error}.") from None


def _scenarios(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SCENARIOS:
            raise ProjectError(f"--only: expected {', '.join(SCENARIOS)}. Received: {name!r}.")
    return tuple(name for name in SCENARIOS if name in names)
