"""The options of ``infer``, and the request that they make."""

import argparse
import sys
from pathlib import Path

from export.errors import ProjectError
from pipeline.artifacts.output import check_folder, check_output
from pipeline.cli.infer_ray import DEFAULT_FOLDER, RAY, add_engine_options, folder_output, refuse_for_engine
from pipeline.cli.selection_options import add_selection_options, add_unverified_option
from pipeline.inference.output.spec import ENDINGS, Format, format_of
from pipeline.inference.request import Request
from pipeline.recipe.schema import Infer
from pipeline.terminal.command_line import Parser

EXAMPLES = """-c digits photos/ -o predictions.csv
  python -m pipeline infer 'photos/**/*.jpg' -o predictions.parquet      a quoted pattern; Parquet
  python -m pipeline infer --list names.txt -o predictions.jsonl         a path a line, or a .csv with a column path
  python -m pipeline infer 'shards/*.tar' data.parquet --top-k 5         WebDataset shards, Parquet with images
  find photos -type f -newer last -print0 | python -m pipeline infer - -o - | head
  python -m pipeline infer photos/ --sort-into sorted --threshold 0.9    links in a folder for each class
  python -m pipeline infer photos/ --engine ray -o answers               on a cluster, to a folder of Parquet parts"""
STANDARD_OUTPUT, DEFAULT_OUTPUT = "-", "predictions.csv"


def add_infer_options(parser: Parser) -> None:
    """Add the options of ``infer`` that concern named images."""
    source = parser.add_argument_group("what is classified")
    source.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="images, folders, quoted patterns, .tar and .parquet files; -: standard input, a list, an image or a tar",
    )
    source.add_argument(
        "--list",
        dest="lists",
        action="append",
        default=[],
        metavar="FILE",
        help="text with a path in each line (or NUL between them), or a .csv with a column of paths; may be repeated",
    )
    source.add_argument("--column", metavar="NAME", help="column of a .csv list or of a .parquet file")
    rows = parser.add_argument_group("what comes out")
    rows.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help=f"{', '.join(ENDINGS)} or {STANDARD_OUTPUT} for standard output; default: {DEFAULT_OUTPUT}; "
        f"with --engine ray a folder, default: {DEFAULT_FOLDER}",
    )
    rows.add_argument(
        "--format",
        choices=["csv", "jsonl"],
        help=f"of the rows, with -o {STANDARD_OUTPUT}; default: csv",
    )
    rows.add_argument("--top-k", type=int, metavar="K", help="classes in each row; default: the recipe's")
    rows.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        metavar="P",
        help="leave classes of a smaller probability out of the rows; 0 to 1, default: %(default)s",
    )
    rows.add_argument(
        "--embeddings", type=Path, metavar="FILE", help="also write the features before the last layer, to a .parquet"
    )
    rows.add_argument(
        "--sort-into",
        type=Path,
        metavar="DIR",
        help="also make links to the images there, in a folder for each class, or _unsure below --threshold",
    )
    rows.add_argument(
        "--csv-safe", action="store_true", help="with CSV: an apostrophe before cells that a spreadsheet would compute"
    )
    rows.add_argument(
        "--keep-damaged", action="store_true", help="answer damaged JPEGs too, as far as they can be decoded"
    )
    how = parser.add_argument_group("how")
    add_selection_options(how)
    add_unverified_option(how)
    how.add_argument(
        "--batch-size", type=int, metavar="N", help="images that are computed at once, at most; default: the recipe's"
    )
    how.add_argument(
        "--shard-rows", type=int, metavar="N", help="rows that are synced to the disk together; default: the recipe's"
    )
    how.add_argument(
        "--gpus", metavar="LIST", help="all, or indices as 0,1: a process on each; default: runtime.device"
    )
    add_engine_options(how)
    how.add_argument("--restart", action="store_true", help="begin anew, also where a stopped run could be continued")


def refuse_without_images(args: argparse.Namespace) -> None:
    """Refuse the options that concern named images where none are named: the stage takes a sample as the recipe says.

    Raises:
        ProjectError: one of them is given.
    """
    defaults = Parser()
    add_infer_options(defaults)
    given = [name for name, value in vars(defaults.parse_args([])).items() if getattr(args, name) != value]
    if given:
        option = "-o" if given[0] == "output" else f"--{given[0].replace('_', '-')}"
        raise ProjectError(f"Expected images to classify with {option}. Received: none. Name files, folders or a list.")


def make_request(args: argparse.Namespace, settings: Infer) -> Request:
    """Return what the options ask for; what they leave open comes from the recipe.

    Args:
        args: parsed options of ``infer``.
        settings: the section ``infer`` of the recipe.

    Raises:
        ProjectError: options that contradict each other, or an output that cannot be written.
    """
    numbers = {
        "--batch-size": settings.batch_size if args.batch_size is None else args.batch_size,
        "--top-k": settings.top_k if args.top_k is None else args.top_k,
        "--shard-rows": settings.shard_rows if args.shard_rows is None else args.shard_rows,
    }
    for option, number in numbers.items():
        if number < 1:
            raise ProjectError(f"Expected a number of at least 1 after {option}. Received: {number}.")
    if not 0 <= args.threshold <= 1:  # not a number is neither
        raise ProjectError(f"Expected a probability from 0 to 1 after --threshold. Received: {args.threshold}.")
    refuse_for_engine(args)
    output, form = (folder_output(args), "parquet") if args.engine == RAY else _output(args)
    if args.csv_safe and form != "csv":
        raise ProjectError(f"Expected --csv-safe with CSV; only a spreadsheet computes cells. Received: {form}.")
    if args.embeddings is not None:
        check_output(args.embeddings, "--embeddings", "features.parquet", (".parquet",))
        if output is not None and args.embeddings.absolute() == output.absolute():
            raise ProjectError(f"Expected two files after -o and --embeddings. Received: {output} twice.")
    if args.sort_into is not None:
        check_folder(args.sort_into, "--sort-into")
    return Request(
        inputs=tuple(args.inputs),
        lists=tuple(args.lists),
        column=args.column,
        output=output,
        format=form,
        batch_size=numbers["--batch-size"],
        top_k=numbers["--top-k"],
        threshold=args.threshold,
        embeddings=args.embeddings,
        sort_into=args.sort_into,
        csv_safe=args.csv_safe,
        keep_damaged=args.keep_damaged,
        decode_threads=settings.decode_threads,
        largest_file=settings.max_file_mib * 2**20,
        shard_rows=numbers["--shard-rows"],
        gpus=args.gpus,
        restart=args.restart,
    )


def _output(args: argparse.Namespace) -> tuple[Path | None, Format]:
    """Return the file and its format; None is standard output."""
    if args.output != STANDARD_OUTPUT:
        if args.format is not None:
            raise ProjectError(
                f"Expected --format with -o {STANDARD_OUTPUT}; the ending of a file says its format. Received: -o "
                f"{args.output or DEFAULT_OUTPUT}."
            )
        if args.output == "":
            raise ProjectError(f"Expected a file after -o, such as {DEFAULT_OUTPUT}. Received: an empty name.")
        output = Path(args.output or DEFAULT_OUTPUT)
        check_output(output, "-o", DEFAULT_OUTPUT, tuple(ENDINGS))
        return output, format_of(output)
    for option, value in (("--embeddings", args.embeddings), ("--sort-into", args.sort_into), ("--gpus", args.gpus)):
        if value is not None:
            raise ProjectError(
                f"Expected {option} with a file after -o: its rows are kept until all are there. Received: -o -."
            )
    if sys.stdout is None:
        raise ProjectError("Expected standard output for -o -. Received: none, it is closed. Name a file after -o.")
    if args.json:
        raise ProjectError(
            "Expected --json with a file after -o. Received: -o -, which already fills standard output. "
            "For rows as JSON: --format jsonl."
        )
    return None, args.format or "csv"
