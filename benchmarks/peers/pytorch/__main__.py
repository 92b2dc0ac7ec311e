"""Time an exported model in PyTorch, eager, as a CUDA graph and compiled, with the same weights as our engines.

The command times PyTorch alone. To time our engines in the same turns, use `PyTorchRunner` with another runner in
`benchmarks.timing.measure`, or in `in_turns` for times that are not wall-clock times.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.peers.pytorch.device import Precision, versions
from benchmarks.peers.pytorch.runner import MODES, PyTorchRunner
from benchmarks.telemetry import commit, gpu_snapshot, machine
from benchmarks.timing import Measurement, in_turns, measure
from export.errors import ProjectError, RunnerError
from export.records import to_json
from export.words import aligned
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.machine import GpuSnapshot, Machine
from pipeline.terminal.command_line import positive

log = logging.getLogger("peers")

SCHEMA = 1
Measures = Literal["infer", "compute", "stream"]
INCLUDES: Mapping[Measures, str] = {
    "infer": "host to host, one batch after the other: uint8 pixels in host memory to logits and probabilities in host "
    "memory, through pinned memory; both copies over the bus; no decoding, no resizing",
    "compute": "the model alone, by CUDA events: uint8 pixels on the GPU to logits and probabilities on the GPU; "
    "preprocessing in the model; no copies over the bus",
    "stream": "batches overlapped: uint8 pixels in pinned memory to logits and probabilities in pinned memory, the "
    "next batch uploaded while one is computed; mean of a run of batches by the host's clock",
}
CHECKED_IMAGES = 4  # images whose logits are compared with FP32 on the CPU
SECONDS, TURNS = 3.0, 10  # seconds of infer for each mode; turns of compute and stream
REPEATS: Mapping[Measures, int] = {"compute": 20, "stream": 30}  # calls, or batches, a turn
LARGEST_ERROR = 0.05  # largest relative error of these logits; a ResNet-50 has 0.001 in FP16

EXAMPLES = """examples:
  python -m benchmarks.peers.pytorch artifacts/imagenet/export/model.onnx -o pytorch.json
  python -m benchmarks.peers.pytorch model.onnx --batches 1,32,256 --modes eager,graphs,compile --precision fp16
  python -m benchmarks.peers.pytorch model.onnx --device cpu --modes eager --precision fp32 --batches 1,8

The last line of the output is JSON. Exit status: 0 all was timed, 1 a mode failed, 2 nothing could be timed.
"""


@dataclass(frozen=True)
class PeerRow:
    """Times of one mode at one batch size and one kind of measurement, or why the mode has none.

    Attributes:
        mode: "eager", "graphs" or "compile".
        precision: "fp16" or "fp32".
        batch: images a call.
        error: why there are no times, and the other fields have their defaults; None where there are times.
        measures: which part of an inference is timed, see `INCLUDES`.
        relative_error: of the logits, against FP32 on the CPU.
        settings: see `PyTorchRunner.describe`.
        measurement: the times.
    """

    mode: str
    precision: Precision
    batch: int
    error: str | None = None
    measures: Measures = "infer"
    relative_error: float = 0.0
    settings: Mapping[str, object] = field(default_factory=dict)
    measurement: Measurement = field(default_factory=Measurement)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types: the samples with their summary, or the error."""
        head = {"backend": "pytorch", "mode": self.mode, "precision": self.precision, "batch": self.batch}
        if self.error is not None:
            return {**head, "error": self.error}
        return {
            **head,
            "measures": self.measures,
            "includes": INCLUDES[self.measures],
            "relative_error": self.relative_error,
            "settings": self.settings,
            "samples_ms": self.measurement.samples_ms,
            **asdict(self.measurement.summary(self.batch)),
        }


@dataclass(frozen=True, kw_only=True)
class PeerReport:
    """The results of one run of the command.

    Attributes:
        schema: of this file.
        model: folder and name of the ONNX file.
        model_sha256: of the ONNX file.
        machine: on which the command ran.
        versions: of PyTorch and its libraries.
        commit: of this code; None outside a repository.
        gpu_before: clocks, temperature and load of the GPUs before the run.
        gpu_after: the same after the run.
        results: all rows.
    """

    schema: int = SCHEMA
    model: str
    model_sha256: str
    machine: Machine
    versions: Mapping[str, str | None]
    commit: str | None
    gpu_before: tuple[GpuSnapshot, ...]
    gpu_after: tuple[GpuSnapshot, ...]
    results: tuple[PeerRow, ...]


def time_batch(
    model: Path,
    batch: int,
    modes: Sequence[str],
    precision: Precision = "fp16",
    device: str = "cuda",
    seconds: float = SECONDS,
    turns: int = TURNS,
) -> list[PeerRow]:
    """Time the modes at one batch size, in turns against each other. A mode that fails does not stop the others.

    Args:
        model: FP32 ONNX file.
        batch: images a call.
        modes: some of ``eager``, ``graphs`` and ``compile``.
        precision: of the model. Defaults to ``"fp16"``.
        device: as torch names it; ``compute`` and ``stream`` need a GPU. Defaults to ``"cuda"``.
        seconds: time of ``infer`` for each mode; see `benchmarks.timing.measure`. Defaults to 3.
        turns: of ``compute`` and ``stream``. Defaults to 10.

    Returns:
        list[PeerRow]: a row for each mode and kind of measurement; for a mode that failed, a row with the error.

    Raises:
        ProjectError: the file does not fit, or PyTorch is missing.
    """
    with PyTorchRunner(model, "fp32", device="cpu", max_batch=CHECKED_IMAGES) as reference:
        pixels = np.random.default_rng(0).integers(0, 256, (batch, *reference.size, 3), dtype=np.uint8)
        expected = reference.infer(pixels[:CHECKED_IMAGES]).logits
    errors: dict[str, str] = {}
    rows: list[PeerRow] = []

    def failed(mode: str, error: Exception) -> None:
        log.warning("%s at batch %d failed: %s", mode, batch, error)
        errors[mode] = f"{type(error).__name__}: {error}"

    with ExitStack() as stack:
        runners: dict[str, PyTorchRunner] = {}
        opened: dict[str, PeerRow] = {}
        for mode in modes:
            patience = " (minutes)" if mode == "compile" else ""
            log.info("preparing %s %s at batch %d%s", mode, precision, batch, patience)
            try:
                runner = PyTorchRunner(model, precision, mode, device=device, max_batch=batch)  # type: ignore[arg-type]
                stack.enter_context(runner)
                distance = _distance(expected, runner.infer(pixels).logits[:CHECKED_IMAGES])
                opened[mode] = PeerRow(mode, precision, batch, relative_error=distance, settings=runner.describe())
                runners[mode] = runner
            except Exception as error:  # any error of PyTorch: the others are still timed
                failed(mode, error)
        timed: dict[Measures, dict[str, Measurement]] = {
            "infer": measure(
                {mode: partial(runner.infer, pixels) for mode, runner in runners.items()},
                seconds_each=seconds,
                on_error=failed,
            )
        }
        if device.startswith("cuda"):
            for kind, count in REPEATS.items():
                calls = {
                    mode: partial(getattr(runner, f"{kind}_ms"), batch, count)
                    for mode, runner in runners.items()
                    if mode not in errors
                }
                timed[kind] = in_turns(calls, turns, failed)
    for mode in modes:
        rows += [
            replace(opened[mode], measures=kind, measurement=by_mode[mode])
            for kind, by_mode in timed.items()
            if mode in by_mode
        ]
        if mode in errors:
            rows.append(PeerRow(mode, precision, batch, errors[mode]))
    return rows


def _distance(expected: np.ndarray, logits: np.ndarray) -> float:
    """Return the relative error of logits; refuse a model that computes something else."""
    distance = float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))
    if not distance <= LARGEST_ERROR:  # also refuses NaN
        raise RunnerError(
            f"Expected the logits of FP32 on the CPU up to a relative error of {LARGEST_ERROR}. "
            f"Received: {distance:.3g}. Take precision fp32, or look for what overflows in FP16."
        )
    return distance


def table(rows: Sequence[PeerRow]) -> str:
    """Return the rows as text."""
    cells: list[tuple[str, ...]] = [("mode", "batch", "measures", "p50 ms", "p99 ms", "img/s", "rel. error")]
    for row in rows:
        head = (row.mode, str(row.batch))
        if row.error is not None:
            cells.append((*head, f"failed: {row.error.splitlines()[0]}"))
            continue
        summary = row.measurement.summary(row.batch)
        speed = "" if summary.images_per_second is None else f"{summary.images_per_second:.1f}"
        times = (f"{summary.p50_ms:.3f}", f"{summary.p99_ms:.3f}", speed)
        cells.append((*head, row.measures, *times, f"{row.relative_error:.1e}"))
    return "\n".join(aligned(cells, right=(1, 3, 4, 5, 6)))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.pytorch",
        description="Time an exported model in PyTorch, channels-last, on the same weights as our engines.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="FP32 ONNX file of the export stage")
    parser.add_argument("--batches", type=_batches, default=[1, 32, 256], metavar="N,…", help="default 1,32,256")
    parser.add_argument("--modes", type=_modes, default=list(MODES), metavar="NAME,…", help=f"of {', '.join(MODES)}")
    parser.add_argument("--precision", choices=("fp16", "fp32"), default="fp16", help="default %(default)s")
    parser.add_argument("--device", default="cuda", help="as torch names it: cuda, cuda:1, cpu; default %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="measured time of each mode; default %(default)s"
    )
    parser.add_argument("--turns", type=positive, default=TURNS, help="turns of GPU times; default %(default)s")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for all rows and samples")
    return parser


def _batches(text: str) -> list[int]:
    return list(dict.fromkeys(map(positive, text.split(","))))


def _modes(text: str) -> list[str]:
    names = list(dict.fromkeys(map(str.strip, text.split(","))))
    if unknown := [name for name in names if name not in MODES]:
        raise argparse.ArgumentTypeError(f"Expected modes of {', '.join(MODES)}. Received: {', '.join(unknown)}.")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the model; return 0, 1 where a mode failed, 2 where nothing could be timed, or 130 when interrupted."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    before = gpu_snapshot()
    rows: list[PeerRow] = []
    try:
        # Opened once before, so that a missing GPU or a wrong file is not tried in every mode.
        with PyTorchRunner(args.model, args.precision, device=args.device, max_batch=1):
            pass
        for batch in args.batches:
            rows += time_batch(args.model, batch, args.modes, args.precision, args.device, args.seconds, args.turns)
        if args.output is not None:
            report = PeerReport(
                model=f"{args.model.resolve().parent.name}/{args.model.name}",
                model_sha256=sha256_file(args.model),
                machine=machine(),
                versions=versions(),
                commit=commit(),
                gpu_before=before,
                gpu_after=gpu_snapshot(),
                results=tuple(rows),
            )
            write_json(args.output, to_json(report))
    except (ProjectError, OSError) as error:
        log.error("%s", error)
        return 2
    except KeyboardInterrupt:
        log.error("interrupted; nothing was written")
        return 130
    log.info("%s", table(rows))
    failed = [f"{row.mode} {row.batch}" for row in rows if row.error is not None]
    print(json.dumps({"rows": len(rows) - len(failed), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
