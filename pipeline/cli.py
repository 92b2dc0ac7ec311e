"""What ``python -m pipeline`` and ``python -m benchmarks`` share: options, logging, errors, exit status."""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from export.errors import ExportError
from pipeline.config import load_recipe
from pipeline.errors import PipelineError
from pipeline.stage import ARTIFACTS, Context

log = logging.getLogger("pipeline")

DONE, VERDICT_FAIL, BAD_INPUT, SOME_FAILED = 0, 1, 2, 3
NOT_FITTING = VERDICT_FAIL  # `engine check`
INTERNAL_ERROR, INTERRUPTED = 70, 130
EXIT_STATUS = """exit status:
  0 done, and passed, or inconclusive, which a warning says
  1 done, and the verdict is fail; engine check: the engine does not fit this machine
  2 bad usage or bad input
  3 done, but some inputs failed     130 interrupted     70 a bug of ours, with a traceback"""


def recipe_options() -> argparse.ArgumentParser:
    """The options of every command that works on a recipe."""
    parser = argparse.ArgumentParser(add_help=False, parents=[output_options()])
    parser.add_argument(
        "-c", "--config", type=Path, default=Path("configs/digits.yaml"), metavar="RECIPE", help="default: %(default)s"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the recipe, such as --set model.input_size=64; may be repeated",
    )
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="default: %(default)s")
    return parser


def stage_options() -> argparse.ArgumentParser:
    """The options of every command that runs stages."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--force", action="store_true", help="run even if the result is up to date")
    parser.add_argument("--explain", action="store_true", help="say what would run and why, and run nothing")
    parser.add_argument("--no-wait", action="store_true", help="fail instead of waiting if another process works on it")
    return parser


def output_options() -> argparse.ArgumentParser:
    """How a command talks."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON on standard output")
    parser.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    parser.add_argument("-v", "--verbose", action="store_true", help="debug messages too")
    return parser


def make_context(args: argparse.Namespace) -> Context:
    """The recipe with overrides and the artifacts folder.

    Raises:
        RecipeError: the recipe is not valid.
    """
    return Context(load_recipe(args.config, args.overrides), args.config, args.artifacts, args.overrides)


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    command: Callable[[argparse.Namespace], dict[str, Any]],
) -> int:
    """Parse, run, print the JSON line, turn every error into a sentence and an exit status.

    ``command`` returns what the JSON line holds; its key "exit" is the exit status (0 if it is missing).
    """
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name may hold what no encoding has
            stream.reconfigure(errors="backslashreplace")
    _start_logging(args)
    quiet_libraries()
    name = getattr(args, "command", parser.prog.rpartition(" ")[2])
    result: dict[str, Any]
    try:
        result = {"command": name, "status": "done"} | command(args)
    except (PipelineError, ExportError) as error:
        result = _failed(name, "bad input", _with_notes(str(error), error), BAD_INPUT)
    except KeyboardInterrupt as error:
        result = _failed(name, "interrupted", _with_notes("Interrupted.", error), INTERRUPTED)
    except ModuleNotFoundError as error:
        advice = (
            f"Expected the package {error.name}, which is not installed here. `make install` (or `make install-gpu` on "
            "a GPU machine) installs all of them; `python -m pipeline doctor` shows what is missing."
        )
        result = _failed(name, "bad input", advice, BAD_INPUT)
    except OSError as error:
        log.debug("where it happened", exc_info=True)
        where = f": {error.filename}" if error.filename else ""
        result = _failed(name, "bad input", _with_notes(f"{error.strerror or error}{where}.", error), BAD_INPUT)
    except Exception:
        log.exception("This is a bug of ours; please report it with the lines above and below.")
        result = _failed(name, "internal error", "see the traceback", INTERNAL_ERROR)
    result.setdefault("exit", DONE)
    if args.json:
        print(_json_line(result), flush=True)
    return int(result["exit"])


def quiet_libraries() -> None:
    """Keep the chatter of other libraries off the screen; their errors stay."""
    for name in ("tensorflow", "tf2onnx", "absl", "h5py", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module=r"PIL\b")  # about odd metadata; what matters raises


def _with_notes(message: str, error: BaseException) -> str:
    """A message, and what whoever saw the error pass by knows of what is left."""
    return " ".join([message, *getattr(error, "__notes__", ())])


def _json_line(result: dict[str, Any]) -> str:
    """Readable where standard output takes it; escaped where it does not, as JSON allows."""
    line = json.dumps(result, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(result)
    return line


def _failed(command: str, status: str, message: str, code: int) -> dict[str, Any]:
    log.error("%s", message)
    return {"command": command, "status": status, "error": message, "exit": code}


class _TqdmHandler(logging.Handler):
    """Writes above progress bars instead of through them; errors and warnings say that they are."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(prefix + self.format(record), file=sys.stderr)


def _start_logging(args: argparse.Namespace) -> None:
    level = logging.WARNING if args.quiet else logging.DEBUG if args.verbose else logging.INFO
    handler = _TqdmHandler()
    for package in ("pipeline", "export", "benchmarks"):
        logger = logging.getLogger(package)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level)
