"""The options of ``verify`` besides those of every stage, and which of them go together."""

import argparse
from pathlib import Path

from export.errors import ProjectError
from export.tensorrt.sidecar import PRECISIONS
from pipeline.artifacts.output import check_output
from pipeline.artifacts.parity_report import ParityReport, read_parity
from pipeline.terminal.command_line import Parser

EXAMPLES = """-c digits
  python -m pipeline verify -c digits --layers                           every Keras layer too
  python -m pipeline verify -c digits --junit parity.xml                 for a build server
  python -m pipeline verify -c digits --baseline release/parity.json     fails where a file got worse
  python -m pipeline verify -c digits --onnx theirs.onnx                 a file that another tool exported
  python -m pipeline verify -c digits --onnx a.onnx --onnx b.onnx --images photos/ --json"""


def add_verify_options(parser: Parser) -> None:
    """Add the options of ``verify``."""
    others = parser.add_argument_group("files of other tools; nothing is written into the artifacts")
    others.add_argument(
        "--onnx",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="compare this ONNX file with the recipe's Keras model, instead of the recipe's own files; may be repeated",
    )
    others.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="with --onnx: compare on these images, which have no labels; default: the recipe's test images",
    )
    others.add_argument(
        "--precision",
        choices=PRECISIONS,
        type=str.lower,
        help="with --onnx: whose thresholds apply; default: what the types in the file say",
    )
    machines = parser.add_argument_group("for machines")
    machines.add_argument(
        "--junit",
        type=Path,
        metavar="FILE",
        help="also write the verdict as JUnit XML, a testcase for each comparison; inconclusive ones, which leave the "
        "exit status at 0, are skipped with that word, as are those that did not run",
    )
    machines.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="parity.json of an earlier verdict on the same model and images: exit status 1 if a file got worse since, "
        "beyond noise",
    )


def read_baseline(path: Path) -> ParityReport:
    """Read the verdict that ``--baseline`` names.

    Raises:
        ProjectError: it cannot be read; with what to name instead, because verifying again makes no earlier verdict.
    """
    return read_parity(
        path,
        "Name the verify/parity.json of an earlier release, as this version writes it; where there is none, keep a "
        "copy of the present one for the next time.",
    )


def check_verify_options(args: argparse.Namespace) -> None:
    """Refuse options of ``verify`` that do not go together, or a file that cannot be written, before any work.

    Raises:
        ProjectError: with the options.
    """
    for option, value in (("--images", args.images), ("--precision", args.precision)):
        if value is not None and not args.onnx:
            raise ProjectError(
                f"Expected {option} with --onnx FILE; the recipe's own files run on its test images. Received: "
                f"{option} alone. Name the ONNX file."
            )
    alone = {"--reduce": args.reduce, "--baseline": args.baseline, "--explain": args.explain, "--force": args.force}
    if args.onnx and (given := [option for option, value in alone.items() if value]):
        raise ProjectError(
            f"Expected {given[0]} without --onnx: it concerns the recipe's own files. Received: both. Leave one out."
        )
    if args.explain and (args.junit or args.baseline):
        raise ProjectError(
            "Expected --explain without --junit and --baseline: it gives no verdict. Received: both. Leave one out."
        )
    for file in args.onnx:
        if not file.is_file():
            raise ProjectError(
                f"Expected an ONNX file after --onnx. Received: {file}, which is no file. Correct the path."
            )
    if args.junit is not None:
        check_output(args.junit, "--junit", "parity.xml", (".xml",))
    if args.baseline is not None and not args.baseline.is_file():
        raise ProjectError(
            f"Expected a parity.json after --baseline. Received: {args.baseline}, which is no file. Correct the path."
        )
