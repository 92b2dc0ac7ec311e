"""Options, logging, errors and exit status that ``python -m pipeline`` and ``python -m benchmarks`` share."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from export.errors import ProjectError, notes
from pipeline.artifacts.output import describe_os_error
from pipeline.recipe.load import load_recipe
from pipeline.recipe.locate import find_recipe, refuse_name_in_use, suggest_path
from pipeline.terminal.command_line import (
    ARTIFACTS,
    Invocation,
    Parser,
    UsageError,
    invocation_of,
    override,
    recipe_file,
)
from pipeline.terminal.log_file import LogFile
from pipeline.terminal.processes import INTERRUPTED, TERMINATED, Terminated, terminated_as_interrupted
from pipeline.workflow.context import Context

log = logging.getLogger("pipeline")
PACKAGES = ("pipeline", "export", "benchmarks")  # whose messages are shown
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed

DONE, VERDICT_FAIL, BAD_INPUT, SOME_FAILED = 0, 1, 2, 3
NOT_FITTING = VERDICT_FAIL  # `engine check`
INTERNAL_ERROR = 70
OUTPUT_CLOSED = 141  # as a shell shows a program that SIGPIPE ends
EXIT_STATUS = """exit status:
  0 done, and passed, or inconclusive, which a warning says
  1 done, and the verdict is fail; engine check: the engine does not fit this machine
  2 bad usage or bad input
  3 done, but some inputs failed; run: done, but nothing is classified
  70 a bug of ours, with a traceback
  130 interrupted (Ctrl-C)     143 terminated (SIGTERM)
  141 the reader of the output (head, less) closed it"""


def recipe_options() -> Parser:
    """Return the options of every command that works on a recipe."""
    parser = Parser(add_help=False, parents=[output_options()])
    parser.add_argument(
        "-c",
        "--config",
        type=recipe_file,
        default=Path("configs/digits.yaml"),
        metavar="RECIPE",
        help="path of a recipe, or its name in configs/; default: %(default)s",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        type=override,
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the recipe, such as --set model.input_size=64; may be repeated",
    )
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="folder of the results; default: %(default)s")
    return parser


def stage_options() -> Parser:
    """Return the options of every command that runs stages."""
    return _switches(
        {
            ("--force",): "run even if the result is up to date",
            ("--explain",): "say what would run and why, and run nothing",
            ("--no-wait",): "fail instead of waiting if another process works on it",
        }
    )


def output_options() -> Parser:
    """Return the options for what a command prints."""
    parser = _switches(
        {
            ("--json",): "end with one line of JSON on standard output",
            ("-q", "--quiet"): "warnings and errors only",
            ("-v", "--verbose"): "debug messages too",
        }
    )
    text = "append every message to this file too, debug messages included, with date, time and level"
    parser.add_argument("--log-file", type=Path, metavar="FILE", help=text)
    return parser


def _switches(helps: Mapping[tuple[str, ...], str]) -> Parser:
    parser = Parser(add_help=False)
    for names, text in helps.items():
        parser.add_argument(*names, action="store_true", help=text)
    return parser


def make_context(args: argparse.Namespace) -> Context:
    """Load the recipe with its overrides; ``args.config`` becomes the path of the recipe that it names.

    Raises:
        RecipeError: the recipe is missing or invalid, or its artifacts belong to another recipe.
    """
    args.config = find_recipe(args.config, args.artifacts)
    recipe = load_recipe(args.config, args.overrides)
    refuse_name_in_use(recipe, args.config, args.artifacts, args.overrides)
    return Context(recipe, args.config, args.artifacts, args.overrides)


def run_command(
    parser: Parser,
    argv: Sequence[str] | None,
    command: Callable[[argparse.Namespace], dict[str, object]],
) -> int:
    """Parse the options, run a command, print its JSON line, and turn every error into a sentence and an exit status.

    If the reader of the output closes it, as ``head`` does, the command ends without a message, and cleans up as it
    does at Ctrl-C.

    Args:
        parser: of the command line.
        argv: the words after the program's name. Defaults to those of this process where it is None.
        command: returns what the JSON line holds; its key "exit" is the exit status (0 if it is missing).

    Returns:
        int: the exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name may hold bytes that no encoding has
            stream.reconfigure(errors="backslashreplace")
    handler = _TqdmHandler()
    try:
        try:
            status = _run(parser, words, command, handler)
        finally:
            if sys.stdout is not None:  # None: the process was started with standard output closed
                sys.stdout.flush()
    except OSError as error:  # standard output or standard error cannot be written
        _stop_writing()
        if not isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError):  # standard error itself may be the one
                log.error("Expected standard output to take the result. Received: %s.", error.strerror or error)
            return BAD_INPUT
        handler.closed = True
    return OUTPUT_CLOSED if handler.closed else status


def _run(
    parser: Parser,
    words: Sequence[str],
    command: Callable[[argparse.Namespace], dict[str, object]],
    handler: _TqdmHandler,
) -> int:
    try:
        args = parser.read(words)
    except UsageError as error:
        _start_logging(handler, logging.WARNING)
        sys.stderr.write(error.usage)
        refused = _failed(next((word for word in words if not word.startswith("-")), ""), "bad input", str(error), 2)
        if "--json" in words:
            print(_json_line(refused), flush=True)
        return BAD_INPUT
    _start_logging(handler, logging.WARNING if args.quiet else logging.DEBUG if args.verbose else logging.INFO)
    quiet_libraries()
    handler.invocation = invocation_of(args)
    name = getattr(args, "command", parser.prog.rpartition(" ")[2])
    with contextlib.ExitStack() as files:
        result = _result(args, name, command, handler, files)
    result.setdefault("exit", DONE)
    if args.json:
        print(_json_line(result), flush=True)
    return int(result["exit"])


def _result(
    args: argparse.Namespace,
    name: str,
    command: Callable[[argparse.Namespace], dict[str, object]],
    handler: _TqdmHandler,
    files: contextlib.ExitStack,
) -> dict[str, Any]:
    """Run the command and return its result, or that of its error, which is logged."""
    try:
        if args.log_file is not None:
            files.enter_context(_logged_to(LogFile(args.log_file, handler.shown)))
        with terminated_as_interrupted():
            return {"command": name, "status": "done"} | command(args)
    except BrokenPipeError:
        raise
    except ProjectError as error:
        message = _with_location(handler.with_commands(str(error)), args)
        return _failed(name, "bad input", _with_notes(message, error), BAD_INPUT)
    except KeyboardInterrupt as error:
        word, status = ("Terminated.", TERMINATED) if isinstance(error, Terminated) else ("Interrupted.", INTERRUPTED)
        return _failed(name, "interrupted", _with_notes(word, error), status)
    except ModuleNotFoundError as error:
        message = (
            f"Expected the package {error.name}. Received: {sys.executable}, which has none of that name. `make "
            "install` (or `make install-gpu` on a GPU machine) installs all of them into an environment of their own, "
            ".venv; use its Python. `python -m pipeline doctor` shows what is missing."
        )
        return _failed(name, "bad input", message, BAD_INPUT)
    except OSError as error:
        log.debug("where it happened", exc_info=True)
        return _failed(name, "bad input", _with_notes(describe_os_error(error), error), BAD_INPUT)
    except Exception as error:
        log.exception("This is a bug of ours; please report it with the lines above and below.")
        return _failed(name, "internal error", _with_notes("See the traceback.", error), INTERNAL_ERROR)


def quiet_libraries() -> None:
    """Hide the log lines and deprecation warnings of other libraries; their errors stay."""
    for name in ("tensorflow", "tf2onnx", "absl", "h5py", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module=r"PIL\b")  # about odd metadata; real damage raises


def _with_notes(message: str, error: BaseException) -> str:
    """Return a message with the error's notes, which say what is left on the disk."""
    return " ".join([message, *notes(error)])


def _with_location(message: str, args: argparse.Namespace) -> str:
    """Return a message, and where a missing path exists if it was written relative to another folder."""
    has_recipe = isinstance(getattr(args, "config", None), Path)
    return message + (suggest_path(message, args.config, args.overrides) if has_recipe else "")


def _json_line(result: dict[str, object]) -> str:
    """Return one line of JSON, escaped to ASCII where the encoding of standard output lacks a character."""
    line = json.dumps(result, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(result)
    return line


def _failed(command: str, status: str, message: str, code: int) -> dict[str, object]:
    log.error("%s", message)
    return {"command": command, "status": status, "error": message, "exit": code}


class _TqdmHandler(logging.Handler):
    """Write log lines above progress bars; errors and warnings begin with their level.

    A warning with the same text as an earlier one is dropped.

    Attributes:
        invocation: of the recipe, whose commands replace general ones in messages; None without a recipe.
        closed: the reader of standard error closed it. The first line that fails for it raises; later ones, while the
            command cleans up, are dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.invocation: Invocation | None = None
        self._warnings: set[str] = set()

    def with_commands(self, message: str) -> str:
        """Return a message of code that does not know the recipe, such as a runner, with this recipe's commands."""
        return message if self.invocation is None else self.invocation.complete(message)

    def shown(self, message: str) -> str:
        """Return a message as a person reads it: a file's name cannot steer the terminal."""
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", self.with_commands(message))

    def emit(self, record: logging.LogRecord) -> None:
        text = self.shown(self.format(record))
        if sys.stderr is None:  # started with it closed; tqdm would write to standard output, among the rows
            return
        if self.closed or (record.levelno == logging.WARNING and text in self._warnings):
            return
        if record.levelno == logging.WARNING:
            self._warnings.add(text)
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        try:
            tqdm.write(prefix + text, file=sys.stderr)
        except BrokenPipeError:
            self.closed = True
            raise


def _stop_writing() -> None:
    """Redirect streams that cannot be written to the null device, so that Python does not flush them again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            try:
                stream.flush()
            except OSError:
                os.dup2(null, stream.fileno())
    os.close(null)


def _start_logging(handler: logging.Handler, level: int) -> None:
    handler.setLevel(level)
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level)


@contextlib.contextmanager
def _logged_to(file: LogFile) -> Iterator[None]:
    """Write every message to a file too while the block runs; the terminal shows those of its own level."""
    loggers = [logging.getLogger(package) for package in PACKAGES]
    levels = [logger.level for logger in loggers]
    with contextlib.closing(file):
        for logger in loggers:
            logger.addHandler(file)
            logger.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.removeHandler(file)
                logger.setLevel(level)
