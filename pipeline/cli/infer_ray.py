"""The options of ``infer --engine ray``, and what they exclude."""

import argparse
from pathlib import Path
from typing import Any

from export.errors import ProjectError
from pipeline.artifacts.output import check_folder
from pipeline.inference.output.spec import ENDINGS

LOCAL, RAY, DEFAULT_FOLDER = "local", "ray", "predictions"
_ALONE = ("embeddings", "sort_into", "csv_safe", "format", "gpus", "shard_rows")  # options of this process


def add_engine_options(group: Any) -> None:
    """Add the options that say where images are classified.

    Args:
        group: of the parser.
    """
    group.add_argument(
        "--engine",
        choices=[LOCAL, RAY],
        default=LOCAL,
        type=str.lower,
        help="this process, or a cluster of Ray; default: %(default)s",
    )
    group.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="of a cluster that is there, auto: this machine's; default: one is started here for the run",
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="with --engine ray: processes that classify; default: one for each GPU, or for every two CPUs",
    )


def refuse_for_engine(args: argparse.Namespace) -> None:
    """Refuse options that the other engine has.

    Raises:
        ProjectError: one of them is given.
    """
    names = ("ray_address", "workers") if args.engine == LOCAL else _ALONE
    other = RAY if args.engine == LOCAL else LOCAL
    for name in names:
        value = getattr(args, name)
        if value not in (None, False):
            option = f"--{name.replace('_', '-')}"
            raise ProjectError(
                f"Expected {option} with --engine {other}. Received: {option} with --engine {args.engine}. Leave one "
                "out."
            )
    if args.engine == RAY and args.workers is not None and args.workers < 1:
        raise ProjectError(f"Expected a number of at least 1 after --workers. Received: {args.workers}.")


def folder_output(args: argparse.Namespace) -> Path:
    """Return the folder that ``-o`` names.

    Raises:
        ProjectError: it names a file, or standard output.
    """
    name = DEFAULT_FOLDER if args.output is None else args.output
    output = Path(name)
    if name in ("", "-") or output.suffix.lower() in ENDINGS:
        folder = output.stem if output.suffix.lower() in ENDINGS else DEFAULT_FOLDER
        raise ProjectError(
            f"Expected a folder after -o with --engine ray, which writes Parquet parts, such as {folder}. Received: "
            f"{name or 'an empty name'}."
        )
    check_folder(output.parent, "-o", output)
    return output
