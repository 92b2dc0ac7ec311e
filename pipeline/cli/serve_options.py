"""The options of ``serve``."""

import argparse

from export.errors import ProjectError
from pipeline.cli.selection_options import add_selection_options, add_unverified_option
from pipeline.terminal.command_line import Parser, positive

EXAMPLES = """-c digits
  curl --data-binary @photo.jpg http://127.0.0.1:8000/classify          an answer as JSON
  python -m pipeline serve -c digits --port 0 --max-delay-ms 0          a free port; no waiting for others
  python -m pipeline serve -c digits --host 0.0.0.0                     for other machines: no login, no TLS
  curl http://127.0.0.1:8000/v2/models/digits                           the Open Inference Protocol, version 2

SIGTERM and Ctrl-C stop it: requests in flight are answered, and the exit status is 0; 3 where some took too long."""
LARGEST_PORT = 65_535


def add_serve_options(parser: Parser) -> None:
    """Add the options of ``serve``."""
    where = parser.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address; default: %(default)s, this machine alone")
    where.add_argument("--port", type=int, default=8000, help="0 picks a free one; default: %(default)s")
    answers = parser.add_argument_group("what answers")
    add_selection_options(answers)
    add_unverified_option(answers)
    answers.add_argument("--top-k", type=positive, metavar="K", help="classes in an answer; default: the recipe's")
    load = parser.add_argument_group("how much it takes")
    load.add_argument(
        "--max-batch",
        type=positive,
        metavar="N",
        help="images that are computed at once, at most; default: the recipe's",
    )
    load.add_argument(
        "--max-delay-ms",
        type=float,
        default=2.0,
        metavar="MS",
        help="milliseconds that an image waits for others that are being decoded, at most; default: %(default)s",
    )
    load.add_argument(
        "--queue",
        type=positive,
        default=256,
        metavar="N",
        help="images that are decoded or wait, at most; others get status 503; default: %(default)s",
    )
    load.add_argument(
        "--max-upload-mib",
        type=positive,
        default=32,
        metavar="MIB",
        help="MiB of a request, at most; default: %(default)s",
    )


def check_serve_options(args: argparse.Namespace) -> None:
    """Refuse what no server takes.

    Raises:
        ProjectError: a port or a delay out of range.
    """
    if not 0 <= args.port <= LARGEST_PORT:
        raise ProjectError(f"Expected a port from 0 to {LARGEST_PORT} after --port. Received: {args.port}.")
    if not 0 <= args.max_delay_ms <= 10_000:  # not a number is neither
        raise ProjectError(f"Expected 0 to 10000 milliseconds after --max-delay-ms. Received: {args.max_delay_ms}.")
    if args.max_upload_mib > 1024:
        raise ProjectError(f"Expected at most 1024 MiB after --max-upload-mib. Received: {args.max_upload_mib}.")
