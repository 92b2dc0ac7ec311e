"""INT8 files as other quantizers make them, from the same ONNX model and the same calibration images.

They stand beside ours in the comparison, so each is made by its quantizer's own defaults plus what TensorRT asks for
(symmetric int8, per-channel weights). It runs in an environment of its own, see README.md, and imports nothing of the
project outside this folder.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from benchmarks.peers.quantizers.tools import PEERS, TOOLS, Int8Placement, PixelReader, placement, read_images
from benchmarks.telemetry import peak_memory_mib
from export.errors import ProjectError
from export.files import put_file, temporary_folder, write_atomic
from export.records import to_json
from export.tensorrt.sidecar import sha256_file
from export.words import count
from pipeline.artifacts.machine import versions_of
from pipeline.terminal.command_line import positive

log = logging.getLogger("peers")

SCHEMA = 1
PACKAGES = ("nvidia-modelopt", "onnxruntime-gpu", "onnxruntime", "onnx", "numpy")

EXAMPLES = """examples:
  COMMON="--model model.onnx --images pixels.npz --out peers"
  python -m benchmarks.peers.quantizers $COMMON
  python -m benchmarks.peers.quantizers $COMMON --peer modelopt-max ort-minmax
  python -m benchmarks.peers.quantizers $COMMON --limit 32

The .npz file holds the array `pixels`, shaped and typed like the model's one input with the images first.
Each peer writes NAME.onnx and NAME.json. The last line of the output is JSON.
"""


@dataclass(frozen=True)
class Job:
    """What one peer shall do; it travels to the process that does it."""

    name: str
    model: Path
    images: Path
    out: Path
    limit: int
    seed: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class PeerFile:
    """The JSON beside a peer's model: how it was made, what it cost, and what in it is INT8.

    Attributes:
        schema: of this file.
        name: of the peer.
        tool: see `Peer`, as ``method`` and ``high_precision``.
        settings: that differ from the tool's defaults.
        model_sha256: of the ONNX file that it was made from.
        images_sha256: of the calibration images' bytes, in their order.
        images: calibration images.
        seed: of their choice.
        seconds: that the tool took.
        cpu_seconds: of all threads: what it costs where others compute too.
        peak_rss_mib: the most memory that its process held; None where the system does not say.
        bytes: size of the model.
        sha256: of the model.
        opset: of the model.
        placement: what is INT8.
        versions: of Python and the packages; None where one is missing.
    """

    schema: int = SCHEMA
    name: str
    tool: str
    method: str
    high_precision: str
    settings: Mapping[str, object]
    model_sha256: str
    images_sha256: str
    images: int
    seed: int
    seconds: float
    cpu_seconds: float
    peak_rss_mib: int | None
    bytes: int
    sha256: str
    opset: int
    placement: Int8Placement
    versions: Mapping[str, str | None]


def run_peer(job: Job) -> PeerFile:
    """Make one peer's file and its sidecar.

    Every peer needs a process of its own: modelopt replaces functions of onnxruntime's quantizer, and the peak memory
    is the process's.

    Returns:
        PeerFile: what the sidecar holds.

    Raises:
        ProjectError: an input does not fit, or the tool failed.
    """
    peer = PEERS[job.name]
    try:
        model = onnx.load(job.model)
    except Exception as error:
        raise ProjectError(f"Expected an ONNX model. Received: {job.model} ({error}). Name another file.") from error
    name, pixels = read_images(job.images, model, job.limit, job.seed)
    with temporary_folder(job.out / job.name) as scratch:
        source, made = scratch / "model.onnx", scratch / "int8.onnx"  # a copy: the tools write beside what they read
        onnx.save(model, source)
        del model
        reader = PixelReader(name, pixels, job.batch, job.name)
        start, busy = time.perf_counter(), time.process_time()
        try:
            settings = TOOLS[peer.tool](peer, source, reader, made)
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            result = onnx.load(made)
            onnx.checker.check_model(result)
        except ImportError as error:
            raise ProjectError(
                f"Expected the packages of requirements.txt. Received: {error}. Install them, see README.md."
            ) from error
        except Exception as error:
            raise ProjectError(f"{job.name} failed: {type(error).__name__}: {error}") from error
        finally:
            reader.progress.close()
        if reader.position < len(pixels):
            raise ProjectError(
                f"Expected {job.name} to calibrate on {count(len(pixels), 'image')}. Received: it read "
                f"{reader.position}. "
                "Its file says nothing about the method: look at its log."
            )
        sidecar = PeerFile(
            name=job.name,
            **asdict(peer),
            settings=settings,
            model_sha256=sha256_file(job.model),
            images_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
            images=len(pixels),
            seed=job.seed,
            seconds=round(seconds, 1),
            cpu_seconds=round(busy, 1),
            peak_rss_mib=peak_memory_mib(),
            bytes=made.stat().st_size,
            sha256=sha256_file(made),
            opset=next(one.version for one in result.opset_import if one.domain in ("", "ai.onnx")),
            placement=placement(result),
            versions={"python": platform.python_version(), **versions_of(PACKAGES)},
        )
        # The sidecar goes last: where it is, its model is whole.
        (job.out / f"{job.name}.json").unlink(missing_ok=True)
        put_file(made, job.out / f"{job.name}.onnx")
        write_atomic(job.out / f"{job.name}.json", json.dumps(to_json(sidecar), indent=2) + "\n")
    return sidecar


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="FP32 ONNX model with one input")
    parser.add_argument("--images", type=Path, required=True, help=".npz with the calibration images, array `pixels`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files; made if missing")
    parser.add_argument(
        "--peer", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="NAME", help=f"of {', '.join(PEERS)}"
    )
    parser.add_argument("--limit", type=positive, default=256, help="images, a seeded choice; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of that choice; default %(default)s")
    parser.add_argument(
        "--batch",
        type=positive,
        default=1,
        help="images a calibration step; entropy scales depend on it; default %(default)s, as modelopt takes them",
    )
    return parser.parse_args(arguments)


def own_process() -> ProcessPoolExecutor:
    """A process for one peer, whose memory is its own; it ends with this one, also by kill -9."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the files. Returns 0, or 1 where a peer failed."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    missing = [one for one in (options.model, options.images) if not one.is_file()]
    if missing:
        log.error("Expected a file. Received: %s, which is none. Name one that exists.", missing[0])
        return 2
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.error("Expected a folder to write to. Received: %s (%s). Name another with --out.", options.out, error)
        return 2
    done: dict[str, dict[str, object]] = {}
    failed: dict[str, str] = {}
    for number, name in enumerate(options.peer, 1):
        log.info("%d/%d %s", number, len(options.peer), name)
        job = Job(name, options.model, options.images, options.out, options.limit, options.seed, options.batch)
        try:
            with own_process() as pool:
                sidecar = pool.submit(run_peer, job).result()
        except (ProjectError, OSError) as error:
            failed[name] = str(error)
        except KeyboardInterrupt:
            log.error("  interrupted; what was made before is whole")
            return 130
        except BrokenProcessPool:
            failed[name] = "its process died, likely for lack of memory: free some, or take fewer images with --limit"
        if name in failed:
            log.error("  %s", failed[name])
            continue
        convolutions = sidecar.placement.convolutions
        log.info(
            "  %s: %d of %d Conv in INT8, %s, %.0f s, peak memory %s MiB",
            *(f"{name}.onnx", convolutions.int8, convolutions.of, count(sidecar.images, "image")),
            *(sidecar.seconds, sidecar.peak_rss_mib),
        )
        done[name] = {one: getattr(sidecar, one) for one in ("images", "seconds", "peak_rss_mib", "sha256")}
    print(json.dumps({"done": done, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
