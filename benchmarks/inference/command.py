"""Measure batch inference: ``python -m benchmarks.inference``."""

import argparse
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.contests import MIN_ROUNDS
from benchmarks.inference.long_runs import million_lines, small_images
from benchmarks.inference.markdown import as_markdown
from benchmarks.inference.photos import CAMERA, copy_photos, find_photos, make_camera_photos
from benchmarks.inference.record import COMPUTE, DECODE, SCRIPT, TUTORIAL, Contest, InferenceReport, LongRun
from benchmarks.inference.scenario import Scenario, refuse_unlike, run_scenario
from benchmarks.telemetry import commit, machine
from export.errors import ProjectError
from export.records import read_record, to_json
from pipeline.artifacts.files import write_json
from pipeline.artifacts.output import check_output
from pipeline.cli import options
from pipeline.recipe.load import load_recipe
from pipeline.recipe.locate import find_recipe
from pipeline.terminal.command_line import ARTIFACTS, Parser, positive, recipe_file
from pipeline.workflow.context import Context

log = logging.getLogger(__name__)

COMPUTE_BOUND, DECODE_BOUND, LINES, SMALL = "compute-bound", "decode-bound", "list-lines", "small-images"
SCENARIOS = (COMPUTE_BOUND, DECODE_BOUND, LINES, SMALL)
TARGETS = {
    COMPUTE_BOUND: {(COMPUTE, False): 0.95, (SCRIPT, False): 1.0, (TUTORIAL, True): 4.0},
    DECODE_BOUND: {(SCRIPT, False): 1.3, (DECODE, False): 0.9},
}
RESIZES, MODES = ("stretch", "imagenet"), ("caffe", "tf", "torch")  # that the scripts know
QUICK = {"rounds": 2, "images": 4, "camera": 2, "lines": 200, "small": 200}
QUICK_CAMERA = (400, 300)
EXAMPLES = """examples:
  python -m benchmarks.inference --photos /data/photos --output benchmarks/results/inference.json
  python -m benchmarks.inference --photos /data/photos --only list-lines,small-images
  python -m benchmarks.inference --show benchmarks/results/inference.json
"""


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m benchmarks.inference",
        description="Time `infer` in turns against a threaded script, the tutorials' loop and its own parts alone.",
        parents=[options.output_options()],
        epilog=f"{EXAMPLES}\n{options.EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="photographs, which are no part of the project")
    parser.add_argument(
        "--only",
        default=f"{COMPUTE_BOUND},{DECODE_BOUND}",
        metavar="NAMES",
        help=f"of {', '.join(SCENARIOS)}; default: %(default)s",
    )
    for name, recipe, what in (
        ("large", "imagenet", f"computing takes longest ({COMPUTE_BOUND})"),
        ("small", "digits", "decoding takes longest (the others)"),
    ):
        parser.add_argument(
            f"--{name}",
            type=recipe_file,
            default=Path(f"configs/{recipe}.yaml"),
            metavar="RECIPE",
            help=f"recipe of the model where {what}; run up to verify; default: %(default)s",
        )
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="folder of the results; default: %(default)s")
    for option, number, what in (
        ("--rounds", 6, f"turns of each candidate; an interval needs {MIN_ROUNDS}"),
        ("--images", 500, f"images a turn, {COMPUTE_BOUND}"),
        ("--camera", 200, f"photographs of 12 megapixels a turn, {DECODE_BOUND}"),
        ("--lines", 1_000_000, f"rows, {LINES}"),
        ("--small-images", 200_000, f"rows, {SMALL}"),
    ):
        parser.add_argument(option, type=positive, default=number, metavar="N", help=f"{what}; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a handful of everything, to try the command; no figures")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write, whole after each scenario")
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="print the tables of such a file, and measure nothing"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return options.run_command(build_parser(), argv, _inference)


def _inference(args: argparse.Namespace) -> dict[str, object]:
    if args.show is not None:
        shown = read_record(
            InferenceReport, args.show, remedy="Measure again with --output.", what="record of batch inference"
        )
        print(as_markdown(shown), end="")
        return {"output": str(args.show)}
    names = _scenarios(args.only)
    if args.output is not None:
        check_output(args.output, "--output", "inference.json", (".json",))
    contexts = {name: _context(args.large if name == COMPUTE_BOUND else args.small, args.artifacts) for name in names}
    for name, context in contexts.items():
        refuse_unlike(context, RESIZES, MODES if name == COMPUTE_BOUND else ())
    photos = find_photos(_photos(args.photos)) if {COMPUTE_BOUND, DECODE_BOUND} & set(names) else []
    if args.quick:
        args.rounds, args.images, args.camera, args.lines, args.small_images = QUICK.values()
    report = InferenceReport(machine=machine(), commit=commit(), load_before=round(os.getloadavg()[0], 2))
    for name, context in contexts.items():
        with tempfile.TemporaryDirectory() as folder:
            result = _measure(name, context, photos, args, Path(folder))
        if isinstance(result, Contest):
            report = replace(report, contests=(*report.contests, result))
        else:
            report = replace(report, long_runs=(*report.long_runs, result))
        if args.output is not None:
            write_json(args.output, to_json(report))
    print(as_markdown(report), end="")
    failed = [run for run in report.long_runs if run.error] + [one for one in report.contests if one.failed]
    return {
        "output": None if args.output is None else str(args.output),
        "scenarios": list(names),
        "exit": options.SOME_FAILED if failed else options.DONE,
    }


def _measure(
    name: str, context: Context, photos: Sequence[Path], args: argparse.Namespace, folder: Path
) -> Contest | LongRun:
    """Make the images of a scenario in a folder of its own, and measure it."""
    work = folder / "work"
    work.mkdir()
    if name == LINES:
        return million_lines(context, args.lines, work)
    if name == SMALL:
        return small_images(context, args.small_images, work)
    images = folder / "photos"
    if name == COMPUTE_BOUND:
        copy_photos(photos, images, args.images)
    else:
        log.info("making %s photographs of 12 megapixels", args.camera)
        make_camera_photos(photos, images, args.camera, QUICK_CAMERA if args.quick else CAMERA)
    copy_photos(sorted(images.iterdir())[:1], folder / "one", 1)
    scenario = Scenario(
        name=name,
        context=context,
        photos=images,
        one=folder / "one",
        targets=TARGETS[name],
        tutorial=name == COMPUTE_BOUND,
        first_row=name == COMPUTE_BOUND,
    )
    return run_scenario(scenario, args.rounds, work)


def _scenarios(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in SCENARIOS:
            raise ProjectError(f"--only: expected {', '.join(SCENARIOS)}. Received: {name!r}.")
    return names


def _photos(folder: Path | None) -> Path:
    if folder is None:
        raise ProjectError(
            "Expected a folder of photographs after --photos; they are no part of this project. Received: none. Name "
            "one with some hundred."
        )
    return folder


def _context(recipe: Path, artifacts: Path) -> Context:
    path = find_recipe(recipe, artifacts)
    return Context(load_recipe(path), path, artifacts)
