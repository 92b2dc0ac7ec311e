"""The options of ``triton-repo``."""

from pathlib import Path

from export.errors import ProjectError
from pipeline.cli.selection_options import add_selection_options
from pipeline.terminal.command_line import Parser

EXAMPLES = """-c digits
  python -m pipeline triton-repo -c digits --backend onnxruntime --instances 2 -o /srv/models/digits
  tritonserver --model-repository=/srv/models/digits"""
_MOST = 64  # instances; more is a typing error


def add_triton_options(parser: Parser) -> None:
    """Add the options of ``triton-repo``."""
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: <recipe>-triton")
    add_selection_options(parser, "auto, the first of them that passed")
    parser.add_argument(
        "--instances",
        type=int,
        default=1,
        metavar="N",
        help="of the model, on each GPU or on the CPU; default: %(default)s",
    )
    parser.add_argument(
        "--decoders",
        type=int,
        metavar="N",
        help="processes that decode; default: one for each CPU of this machine, at most 8",
    )


def check_number(option: str, number: int) -> int:
    """Return a number of instances.

    Raises:
        ProjectError: it is none.
    """
    if not 1 <= number <= _MOST:
        raise ProjectError(f"Expected a number from 1 to {_MOST} after {option}. Received: {number}.")
    return number
