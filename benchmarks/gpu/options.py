"""Define and check the options of ``python -m benchmarks.gpu_evidence``.

The module needs Python 3.10 and the standard library alone.
"""

import argparse
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, cast

from benchmarks.gpu.timings import PEER_MODES
from export.errors import ProjectError
from export.tensorrt.sidecar import Precision
from pipeline.artifacts.engines import engine_source
from pipeline.artifacts.gpu_evidence import FOLDER, Variant
from pipeline.artifacts.output import check_folder, check_output
from pipeline.artifacts.paths import ONNX, REFERENCE
from pipeline.terminal.command_line import Parser, suggest_closest

log = logging.getLogger("benchmarks.gpu")

VARIANTS: tuple[Variant, ...] = ("throughput", "latency")
Checks = Literal["none", "quick", "all"]
CHECKS = ("none", "quick", "all")
MAIN: tuple[Precision, ...] = ("fp16", "int8")  # the precisions of the targets; FP32 comes after them
BATCH, CYCLES, CYCLE_SECONDS = 256, 1000, 60.0
MOST_BATCH, MOST_CYCLES = 1 << 16, 10**6
EXAMPLES = """examples:
  python -m benchmarks.gpu_evidence artifacts/imagenet
  mkdir imagenet && tar xf imagenet.bundle.tar -C imagenet
  python -m benchmarks.gpu_evidence imagenet --minutes 8 --level 2 --dry-run
  python -m benchmarks.gpu_evidence imagenet --minutes 8 --level 2
  python -m benchmarks.gpu_evidence imagenet --variants latency --precisions int8 --checks none --peers none

order, by importance: FP16 and INT8 at the largest batch (build, parity with Keras, times), the same at a batch of 1
with CUDA graphs, then FP32, checks, leak cycles, PyTorch. Steps that no longer fit into --minutes are skipped and
listed. The results are written after every step, as JSON and as Markdown.

exit status:
  0 no step failed     1 a step, a check or the comparison with Keras failed, or there is no engine
  2 bad input     3 no GPU, or no TensorRT: nothing was measured     4 a step hung and was cut short     130 interrupted
The last line on stdout is always JSON: output (the file, or null), exit (the status), error (the first, or empty);
after a visit also state, parity (the verdict), failed (the number of failures)."""


class VisitParser(Parser):
    """A parser that does not accept abbreviated options, with errors as sentences."""

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a command line, without the program's name.

        Raises:
            UsageError: it cannot be parsed.
        """
        options, unknown = self.parse_known_args(words)
        if unknown:
            name = unknown[0].partition("=")[0]
            near = suggest_closest(name, self._option_string_actions, cutoff=0.7) if name.startswith("-") else ""
            self.error(
                f"Expected one folder, and options of this command. Received: {unknown[0]} too.{near} See --help."
            )
        return options

    def error(self, message: str) -> NoReturn:
        """Raise an error of argparse in the project's form."""
        if message.endswith("required: FOLDER"):
            message = "Expected a folder of artifacts. Received: none. Write: python -m benchmarks.gpu_evidence FOLDER"
        super().error(message)


@dataclass(frozen=True)
class Options:
    """The options of the command; see its help."""

    artifacts: Path
    output: Path | None
    flavour: str | None
    precisions: tuple[Precision, ...]
    named: bool  # whether --precisions was given
    variants: tuple[Variant, ...]
    targets: tuple[str, ...]
    batch: int
    seconds: float
    minutes: float | None
    level: int | None
    checks: Checks
    cycles: int
    cycle_seconds: float
    peers: tuple[str, ...]
    plans: Path | None
    commit: str | None
    dry_run: bool

    def described(self) -> dict[str, object]:
        """Return the options for the evidence, without paths."""
        return {name: getattr(self, name) for name in (
            "minutes", "level", "variants", "precisions", "checks", "peers", "seconds", "batch", "cycles",
            "cycle_seconds", "targets",
        )}  # fmt: skip


def build_parser() -> VisitParser:
    """Return the parser of the command line."""
    parser = VisitParser(
        prog="python -m benchmarks.gpu_evidence",
        description="Build, check, compare with Keras and time a model's engines on this GPU, and write the results.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("artifacts", type=Path, metavar="FOLDER", help="a recipe's artifacts, or an unpacked bundle")
    add("--dry-run", action="store_true", help="check the folder and list the steps; no GPU is needed")
    add("-o", "--output", type=Path, help=f"default: FOLDER/{FOLDER}/<gpu>-<flavour>-<version>.json")
    add("--minutes", type=float, help="time limit of the visit (default: none)")
    add(
        "--level",
        type=int,
        help="TensorRT's builder_optimization_level, 0 to 5: lower builds quicker (default: its own)",
    )
    add("--variants", help="throughput (large batches), latency (one image), or both with a comma (default: both)")
    add("--precisions", help=f"some of {','.join(ONNX)} (default: those whose ONNX files exist)")
    add(
        "--checks",
        choices=CHECKS,
        default="all",
        help="of the engines; none: no leak cycles either (default: %(default)s)",
    )
    add("--peers", help=f"PyTorch beside the engines: none, or some of {','.join(PEER_MODES)} (default: all)")
    add("--seconds", type=float, default=3.0, help="measured time of each number (default: %(default)s)")
    add("--batch", type=int, help=f"largest batch of the throughput engines (default: {BATCH})")
    add("--cycles", type=int, help=f"most openings and closings of an engine in the leak check (default: {CYCLES})")
    add("--cycle-seconds", type=float, help=f"longest duration of the leak check (default: {CYCLE_SECONDS:g})")
    add("--flavour", choices=("tensorrt", "rtx"), help="default: the first that is installed")
    add("--targets", help="for rtx only: the GPUs to build for, such as current or SM89")
    add("--plans", type=Path, help="folder to keep the engines in (default: a temporary one)")
    add("--commit", help="commit of this code, where there is no repository")
    return parser


def read_options(args: argparse.Namespace) -> Options:
    """Check the arguments from `build_parser` and convert them.

    Raises:
        ProjectError: an option is out of its range, or options contradict each other.
    """
    if args.output is not None:
        check_output(args.output, "-o", "evidence.json", (".json",))
    if args.plans is not None:
        check_folder(args.plans, "--plans")
    _refuse_contradictions(args)
    options = Options(
        artifacts=args.artifacts,
        output=args.output,
        flavour=args.flavour,
        precisions=cast("tuple[Precision, ...]", _listed(args.precisions, "--precisions", tuple(ONNX))),
        named=args.precisions is not None,
        variants=cast("tuple[Variant, ...]", _listed(args.variants, "--variants", VARIANTS)),
        targets=tuple(args.targets.split(",")) if args.targets else (),
        batch=BATCH if args.batch is None else args.batch,
        seconds=args.seconds,
        minutes=args.minutes,
        level=args.level,
        checks=args.checks,
        cycles=CYCLES if args.cycles is None else args.cycles,
        cycle_seconds=CYCLE_SECONDS if args.cycle_seconds is None else args.cycle_seconds,
        peers=() if args.peers == "none" else _listed(args.peers, "--peers", PEER_MODES, "none alone, or "),
        plans=args.plans,
        commit=args.commit,
        dry_run=args.dry_run,
    )
    for name, value, fits, expected in (
        ("--batch", options.batch, 2 <= options.batch <= MOST_BATCH,
         f"of at least 2 (a batch of 1 is the variant latency), and of {MOST_BATCH:,} at most"),
        ("--cycles", options.cycles, 1 <= options.cycles <= MOST_CYCLES, f"from 1 to {MOST_CYCLES:,}"),
        ("--cycle-seconds", options.cycle_seconds, 0 < options.cycle_seconds < 1e6, "above 0 and below 1,000,000"),
        ("--seconds", options.seconds, 0 < options.seconds < 1e6, "above 0 and below 1,000,000"),
        ("--minutes", options.minutes, options.minutes is None or 0 < options.minutes < 1e5,
         "above 0 and below 100,000"),
        ("--level", options.level, options.level is None or 0 <= options.level <= 5, "from 0 to 5"),
    ):  # fmt: skip
        if not fits:
            raise ProjectError(f"Expected {name} {expected}. Received: {value}. Correct it.")
    return options


def _listed(text: str | None, option: str, known: Sequence[str], before: str = "") -> tuple[str, ...]:
    names = known if text is None else text.split(",")
    if wrong := [name for name in names if name not in known]:
        raise ProjectError(
            f"Expected {option} of {before}{','.join(known)}, separated by commas. Received: {text}, where "
            f"{wrong[0]!r} is not one of them.{suggest_closest(wrong[0], known) or ' Correct it.'}"
        )
    return tuple(name for name in known if name in names)


def _refuse_contradictions(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other; warn of options without effect."""
    if args.targets and args.flavour == "tensorrt":
        raise ProjectError(
            f"Expected --targets of rtx alone, as TensorRT builds for the GPU here. Received: --targets {args.targets} "
            "and --flavour tensorrt. Leave one of them out."
        )
    cycles = "--cycles" if args.cycles is not None else "--cycle-seconds" if args.cycle_seconds is not None else ""
    if args.checks == "none" and cycles:
        log.warning("%s has no effect with --checks none", cycles)
    if args.batch is not None and args.variants == "latency":
        log.warning("--batch %d has no effect with --variants latency, whose batch is 1", args.batch)


def check_artifacts(options: Options) -> None:
    """Refuse a folder without the necessary artifacts, before a GPU is looked for.

    Raises:
        ProjectError: the folder or files in it are missing.
    """
    folder = options.artifacts
    if not folder.is_dir():
        neighbours = sorted(path.name for path in folder.parent.glob("*/") if (path / REFERENCE).is_file())
        raise ProjectError(
            "Expected a folder of a recipe's artifacts, or of an unpacked bundle. "
            f"Received: {folder}, {'which is a file.' if folder.exists() else 'which does not exist.'}"
            + (f" In {folder.parent.resolve()} there are: {', '.join(neighbours)}." if neighbours else "")
            + (
                f" A bundle is unpacked first: mkdir mine && tar xf {shlex.quote(str(folder))} -C mine"
                if folder.exists()
                else ""
            )
        )
    sources = {name: [engine_source(name, typed) for typed in (True, False)] for name in options.precisions}
    absent = [files[0] for files in sources.values() if not any((folder / name).is_file() for name in files)]
    missing = absent if options.named or len(absent) == len(sources) else []
    missing += [] if (folder / REFERENCE).is_file() else [REFERENCE]
    if missing:
        path = folder.resolve()
        remedy = (
            f"It is a folder within one: name {path.parent}."
            if (path.parent / REFERENCE).is_file()
            else "Run the recipe, verify included, and bring its artifacts here: python -m pipeline bundle, there."
        )
        raise ProjectError(f"Expected a recipe's artifacts in {path}. Received: no {', '.join(missing)}. {remedy}")
    if options.output is None:
        check_folder(folder / FOLDER, "-o (which is the folder of artifacts unless it is given)")


def refuse_missing_sources(options: Options, library: str, strongly_typed: bool) -> None:
    """Refuse named precisions without a file for this TensorRT, and unnamed ones where only FP32 is left.

    Args:
        options: of the command.
        library: name of the TensorRT, for the message.
        strongly_typed: whether it has strongly typed networks; TensorRT 8.6 has none.

    Raises:
        ProjectError: files are missing; with what makes them.
    """
    sources = {precision: engine_source(precision, strongly_typed) for precision in options.precisions}
    absent = {precision: name for precision, name in sources.items() if not (options.artifacts / name).is_file()}
    alone = not options.named and "fp32" not in absent and all(precision in absent for precision in MAIN)
    if absent and (options.named or alone or len(absent) == len(sources)):
        setting = "" if strongly_typed else ", with quantize.tensorrt8: true"
        alternative = "--precisions fp32 to go on without them" if alone else "name other precisions"
        raise ProjectError(
            f"Expected {', '.join(absent.values())} in {options.artifacts}, for {library}. Received: "
            f"no such file. Run the recipe, verify included{setting}, and bring its artifacts here, or {alternative}."
        )
