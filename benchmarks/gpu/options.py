"""The options of ``python -m benchmarks.gpu_evidence``: read, and refused where they make no sense together.

Python 3.10 syntax, standard library alone.
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
from pipeline.terminal.command_line import Parser, meant

log = logging.getLogger("benchmarks.gpu")

VARIANTS: tuple[Variant, ...] = ("throughput", "latency")
Checks = Literal["none", "quick", "all"]
CHECKS = ("none", "quick", "all")
MAIN: tuple[Precision, ...] = ("fp16", "int8")  # what the targets are about; FP32 comes behind them
BATCH, CYCLES, CYCLE_SECONDS = 256, 1000, 60.0
MOST_BATCH, MOST_CYCLES = 1 << 16, 10**6
EXAMPLES = """examples:
  python -m benchmarks.gpu_evidence artifacts/imagenet
  mkdir imagenet && tar xf imagenet.bundle.tar -C imagenet
  python -m benchmarks.gpu_evidence imagenet --minutes 8 --level 2 --dry-run
  python -m benchmarks.gpu_evidence imagenet --minutes 8 --level 2
  python -m benchmarks.gpu_evidence imagenet --variants latency --precisions int8 --checks none --peers none

order, what is worth most first: FP16 and INT8 at the largest batch (build, answers against Keras', times), the same at
a batch of 1 with CUDA graphs, then FP32, checks, leak cycles, PyTorch. What no longer fits into --minutes is skipped
and named. Everything is written after every step, as JSON and as Markdown.

exit status:
  0 nothing that was made failed     1 a step, a check or the comparison with Keras failed, or there is no engine
  2 bad input     3 no GPU, or no TensorRT: nothing was measured     4 a step hung and was cut short     130 interrupted
The last line on stdout is JSON, however it ends: output (the file, or null), exit (the status), error (the first, or
empty); after a visit also state, parity (the verdict), failed (how many things)."""


class VisitParser(Parser):
    """Refuses in a sentence what cannot be read; an option is written whole."""

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Read a command line, without the program's name.

        Raises:
            UsageError: it cannot be read.
        """
        found, left = self.parse_known_args(words)
        if left:
            name = left[0].partition("=")[0]
            near = meant(name, self._option_string_actions, cutoff=0.7) if name.startswith("-") else ""
            self.error(f"Expected one folder, and options of this command. Received: {left[0]} too.{near} See --help.")
        return found

    def error(self, message: str) -> NoReturn:
        """What argparse found, in our form."""
        if message.endswith("required: FOLDER"):
            message = "Expected a folder of artifacts. Received: none. Write: python -m benchmarks.gpu_evidence FOLDER"
        super().error(message)


@dataclass(frozen=True)
class Options:
    """What was asked for; see the help of the command."""

    artifacts: Path
    output: Path | None
    flavour: str | None
    precisions: tuple[Precision, ...]
    named: bool  # the precisions were named, and are not just those that there could be
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
        """What of it a reader of the results must know: no paths."""
        names = (
            "minutes", "level", "variants", "precisions", "checks", "peers", "seconds", "batch", "cycles",
            "cycle_seconds", "targets",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def build_parser() -> VisitParser:
    """The parser."""
    parser = VisitParser(
        prog="python -m benchmarks.gpu_evidence",
        description="Build, check, compare with Keras and time a model's engines on this GPU, and write what was seen.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("artifacts", type=Path, metavar="FOLDER", help="a recipe's artifacts, or an unpacked bundle")
    add("--dry-run", action="store_true", help="check the folder and say what would be done; no GPU is needed")
    add("-o", "--output", type=Path, help=f"default: FOLDER/{FOLDER}/<gpu>-<flavour>-<version>.json")
    add("--minutes", type=float, help="that all of it may take (default: as long as it takes)")
    add(
        "--level",
        type=int,
        help="TensorRT's builder_optimization_level, 0 to 5: lower builds quicker (default: its own)",
    )
    add("--variants", help="throughput (large batches), latency (one image), or both with a comma (default: both)")
    add("--precisions", help=f"some of {','.join(ONNX)} (default: those whose ONNX files are there)")
    add(
        "--checks",
        choices=CHECKS,
        default="all",
        help="of the engines; none: no leak cycles either (default: %(default)s)",
    )
    add("--peers", help=f"PyTorch beside the engines: none, or some of {','.join(PEER_MODES)} (default: all)")
    add("--seconds", type=float, default=3.0, help="that each number is measured for (default: %(default)s)")
    add("--batch", type=int, help=f"largest batch of the throughput engines (default: {BATCH})")
    add("--cycles", type=int, help=f"of opening and closing an engine, in the leak check, at most (default: {CYCLES})")
    add("--cycle-seconds", type=float, help=f"that the leak check takes at most (default: {CYCLE_SECONDS:g})")
    add("--flavour", choices=("tensorrt", "rtx"), help="default: the first that is installed")
    add("--targets", help="of rtx alone: the GPUs to build for, such as current or SM89")
    add("--plans", type=Path, help="folder to keep the engines in (default: a temporary one)")
    add("--commit", help="that this code is of, where there is no repository to ask")
    return parser


def read_options(args: argparse.Namespace) -> Options:
    """Take what `build_parser` parsed.

    Raises:
        ProjectError: what was expected, what was received, what to do.
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
    if text is None:
        return tuple(known)
    given = tuple(dict.fromkeys(text.split(",")))
    if wrong := [one for one in given if one not in known]:
        raise ProjectError(
            f"Expected {option} of {before}{','.join(known)}, separated by commas. Received: {text}, where "
            f"{wrong[0]!r} is not one of them.{meant(wrong[0], known) or ' Correct it.'}"
        )
    return tuple(one for one in known if one in given)


def _refuse_contradictions(args: argparse.Namespace) -> None:
    """Refuse what cannot be done; say what has no effect, because a visit is too short to be stopped by it."""
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
    """Refuse a folder that nothing can be measured with, before a GPU is looked for: where it is made, it is mended.

    Raises:
        ProjectError: what was expected, and what to do.
    """
    folder = options.artifacts
    if not folder.is_dir():
        what = "which is a file." if folder.exists() else "which does not exist."
        line = f" A bundle is unpacked first: mkdir mine && tar xf {shlex.quote(str(folder))} -C mine"
        near = sorted(p.name for p in folder.parent.glob("*/") if (p / REFERENCE).is_file())
        there = f" In {folder.parent.resolve()} there are: {', '.join(near)}." if near else ""
        raise ProjectError(
            f"Expected a folder of a recipe's artifacts, or of an unpacked bundle. Received: {folder}, {what}{there}"
            f"{line if folder.exists() else ''}"
        )
    wanted = {one: [engine_source(one, strong) for strong in (True, False)] for one in options.precisions}
    absent = [files[0] for files in wanted.values() if not any((folder / name).is_file() for name in files)]
    missing = absent if options.named or len(absent) == len(wanted) else []
    missing += [] if (folder / REFERENCE).is_file() else [REFERENCE]
    if missing:
        here = folder.resolve()
        above = (here.parent / REFERENCE).is_file()
        remedy = (
            f"It is a folder within one: name {here.parent}."
            if above
            else "Run the recipe, verify included, and bring its artifacts here: python -m pipeline bundle, there."
        )
        raise ProjectError(f"Expected a recipe's artifacts in {here}. Received: no {', '.join(missing)}. {remedy}")
    if options.output is None:
        check_folder(folder / FOLDER, "-o (which is the folder of artifacts unless it is given)")


def refuse_missing_sources(options: Options, library: str, strongly_typed: bool) -> None:
    """Refuse precisions that were named and have no file for this TensorRT; unnamed, FP32 alone is no visit's worth.

    Args:
        options: what was asked for.
        library: which TensorRT, for the message.
        strongly_typed: whether it is; what is not is TensorRT 8.6.

    Raises:
        ProjectError: what is absent, and what makes it.
    """
    sources = {precision: engine_source(precision, strongly_typed) for precision in options.precisions}
    absent = {precision: name for precision, name in sources.items() if not (options.artifacts / name).is_file()}
    alone = not options.named and "fp32" not in absent and all(one in absent for one in MAIN)
    if absent and (options.named or alone or len(absent) == len(sources)):
        made = "" if strongly_typed else ", with quantize.tensorrt8: true"
        go_on = "--precisions fp32 to go on without them" if alone else "name other precisions"
        raise ProjectError(
            f"Expected {', '.join(absent.values())} in {options.artifacts}, for {library}. Received: "
            f"no such file. Run the recipe, verify included{made}, and bring its artifacts here, or {go_on}."
        )
