"""Take networks of several families through each step of INT8 quantization: ``python -m benchmarks.int8``.

A network is drawn (random weights with the statistics of a trained network) or trained here for a few epochs, on a
folder of photographs, and kept in a folder. Each step is a search of its own on the same images, judged on images that
gave no scales and chose nothing. With --earlier the code of an earlier commit makes rows of its own, against which the
others are held.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from benchmarks.int8.measure import measure
from benchmarks.int8.networks import FEWEST, Network, Weights, load_photographs, make_network, read_network
from benchmarks.int8.record import Measured, Table, read_table
from benchmarks.int8.step import EARLIER, STEPS
from benchmarks.telemetry import machine
from export.errors import DataError, ProjectError
from export.records import to_json
from export.words import listed
from pipeline.artifacts.files import write_json
from pipeline.artifacts.output import check_output
from pipeline.cli import options
from pipeline.data.dataset import ImageSet
from pipeline.recipe.backbones import BACKBONES
from pipeline.terminal.command_line import Parser, suggest_closest
from pipeline.terminal.console import start_tensorflow

log = logging.getLogger("benchmarks.int8")

NETWORKS = (
    *("resnet20:trained", "resnet18:trained", "resnet34:trained", "resnet50v2:trained", "resnet101:trained"),
    *("resnet101v2:trained", "resnet152:trained", "mobilenetv2:trained", "efficientnetb0:trained"),
    *("resnet20:drawn", "resnet18:drawn", "resnet34:drawn", "resnet50v2:drawn", "resnet101:drawn"),
    *("resnet101v2:drawn", "resnet152:drawn", "mobilenetv2:drawn", "efficientnetb0:drawn"),
)
EXAMPLES = """examples:
  python -m benchmarks.int8 --data /data/photos --networks /data/networks --photographs "flowers of five kinds"
  python -m benchmarks.int8 --data /data/photos --networks /data/networks --only mobilenetv2:trained --size 96
  git worktree add /tmp/earlier 8a4a681 && \\
      python -m benchmarks.int8 --data /data/photos --networks /data/networks --earlier /tmp/earlier
"""


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m benchmarks.int8",
        description=__doc__,
        parents=[options.output_options()],
        epilog=f"{EXAMPLES}\n{options.EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="photographs, with a subfolder for each class"
    )
    parser.add_argument("--photographs", default="", metavar="TEXT", help="what they are, for the record")
    parser.add_argument(
        "--networks",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="keeps the networks; those in it are not made again",
    )
    parser.add_argument(
        "--only", default=",".join(NETWORKS), metavar="NAMES", help="BACKBONE:drawn or BACKBONE:trained, with commas"
    )
    parser.add_argument("--steps", metavar="NAMES", help=f"of {', '.join((*EARLIER, *STEPS))}; default: all")
    parser.add_argument("--earlier", type=Path, metavar="FOLDER", help="code of an earlier commit, checked out there")
    parser.add_argument("--size", type=int, default=64, help="input size, where the network allows; default: 64")
    parser.add_argument("--epochs", type=int, default=4, help="passes of a training; default: 4")
    parser.add_argument(
        "--images", type=int, default=256, help="calibration images, half of the test images; default: 256"
    )
    parser.add_argument("--output", type=Path, help="JSON file; networks of an older one are kept")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return options.run_command(build_parser(), argv, _measure_all)


def _measure_all(args: argparse.Namespace) -> dict[str, object]:
    names, steps = _checked(args)
    earlier = read_table(args.output).networks if args.output is not None and args.output.is_file() else ()
    measured = {_key(entry.network): entry for entry in earlier}
    images: ImageSet | None = None
    failed = []
    for backbone, weights in names:
        folder = args.networks / f"{backbone}-{weights}"
        if not folder.is_dir():
            start_tensorflow()
            images = images or load_photographs(args.data)
            make_network(folder, backbone, weights, images, size=args.size, epochs=args.epochs, most=args.images)
        network = read_network(folder)
        log.info("%s, %s, %d pixels, accuracy %.1f %%", backbone, weights, network.input_size, 100 * network.accuracy)
        try:
            measured[backbone, weights] = Measured(network, tuple(measure(folder, steps, args.earlier)))
        except ProjectError as error:
            failed.append(f"{backbone}:{weights}")
            log.error("%s", error)
        if args.output is not None and measured:
            write_json(
                args.output,
                to_json(Table(photographs=args.photographs, machine=machine(), networks=tuple(measured.values()))),
            )
    if len(failed) == len(names):
        raise ProjectError(f"Expected a network that the search takes. Received: {listed(failed)}; see above.")
    worse = [
        f"{':'.join(name)} {row.step} against {step}"
        for name in names
        if name in measured
        for row in measured[name].rows
        for step, entry in row.gains.items()
        if step in EARLIER and entry.worse
    ]
    return {"worse": worse, "failed": failed, "exit": options.SOME_FAILED if failed else options.DONE}


def _key(network: Network) -> tuple[str, Weights]:
    return network.backbone, network.weights


def _checked(args: argparse.Namespace) -> tuple[list[tuple[str, Weights]], list[str]]:
    """Return the networks and the steps, after a check of the arguments."""
    names: list[tuple[str, Weights]] = []
    for name in args.only.split(","):
        backbone, _, weights = name.strip().partition(":")
        if backbone not in BACKBONES or weights not in ("drawn", "trained"):
            raise ProjectError(
                "--only: expected names such as mobilenetv2:trained or mobilenetv2:drawn. "
                f"Received: {name.strip()!r}.{'' if backbone in BACKBONES else suggest_closest(backbone, BACKBONES)}"
            )
        names.append((backbone, weights))
    possible = [*(EARLIER if args.earlier is not None else ()), *STEPS]
    steps = [step.strip() for step in args.steps.split(",")] if args.steps is not None else possible
    for step in steps:
        if step in EARLIER and args.earlier is None:
            raise ProjectError(f"--steps {step}: expected --earlier with the folder of that code. Received: none.")
        if step not in possible:
            raise ProjectError(
                f"--steps: expected some of {', '.join(possible)}. Received: {step!r}.{suggest_closest(step, possible)}"
            )
    if args.size < 1 or args.epochs < 1 or args.images < 4 * FEWEST:
        raise ProjectError(
            f"Expected --size and --epochs of at least 1, and --images of at least {4 * FEWEST}. "
            f"Received: {args.size}, {args.epochs} and {args.images}."
        )
    if args.output is not None:
        check_output(args.output, "--output", "int8-networks.json", (".json",))
    if args.earlier is not None and not (args.earlier / "export/int8/search.py").is_file():
        raise ProjectError(
            f"--earlier: expected a checkout of this project. Received: {args.earlier}, without export/int8/search.py."
        )
    if not args.data.is_dir():
        problem = "which is not a folder" if args.data.exists() else "which does not exist"
        raise DataError(f"--data: expected a folder with a subfolder for each class. Received: {args.data}, {problem}.")
    return names, [step for step in (*EARLIER, *STEPS) if step in steps]
