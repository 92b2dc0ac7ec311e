"""Make INT8 files with other quantizers, from the same ONNX model and the same calibration images.

They are compared with ours, so each quantizer uses its own defaults plus what TensorRT requires (symmetric int8,
per-channel weights). The command runs in an environment of its own, see README.md. It is not in ``__main__``, whose
functions the processes that it starts cannot import.
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
from export.errors import ProjectError
from export.files import commit_file, temporary_folder, write_atomic
from export.records import to_json
from export.tensorrt.sidecar import sha256_file
from export.words import count
from pipeline.artifacts.machine import peak_memory_mib, versions_of
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


@dataclass(frozen=True, kw_only=True)
class PeerFile:
    """The JSON beside a peer's model: how it was made, its cost, and what in it is INT8.

    Attributes:
        schema: of this file.
        name: of the peer.
        tool: see `Peer`.
        method: see `Peer`.
        high_precision: see `Peer`.
        settings: that differ from the tool's defaults.
        model_sha256: of the ONNX file that it was made from.
        images_sha256: of the calibration images' bytes, in their order.
        images: number of calibration images.
        seed: of their random choice.
        seconds: wall-clock time of the tool.
        cpu_seconds: processor time of all threads.
        peak_rss_mib: peak memory of its process in MiB; None where the system does not report it.
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


def run_peer(name: str, model: Path, images: Path, out: Path, *, limit: int, seed: int, batch: int) -> PeerFile:
    """Make one peer's file and its sidecar.

    Every peer needs a process of its own, because modelopt replaces functions of onnxruntime's quantizer, and the peak
    memory is that of the process.

    Args:
        name: of the peer, a key of `PEERS`.
        model: FP32 ONNX file.
        images: .npz file with the calibration images.
        out: folder for the file and its sidecar.
        limit: most calibration images.
        seed: of their random choice.
        batch: images a calibration step.

    Returns:
        PeerFile: the sidecar.

    Raises:
        ProjectError: an input does not fit, or the tool failed.
    """
    peer = PEERS[name]
    try:
        graph = onnx.load(model)
    except Exception as error:
        raise ProjectError(f"Expected an ONNX model. Received: {model} ({error}). Name another file.") from error
    input_name, pixels = read_images(images, graph, limit, seed)
    with temporary_folder(out / name) as scratch:
        source, int8 = scratch / "model.onnx", scratch / "int8.onnx"  # a copy, as the tools write beside their input
        onnx.save(graph, source)
        del graph
        reader = PixelReader(input_name, pixels, batch, name)
        start, busy = time.perf_counter(), time.process_time()
        try:
            settings = TOOLS[peer.tool](peer, source, reader, int8)
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            result = onnx.load(int8)
            onnx.checker.check_model(result)
        except ImportError as error:
            raise ProjectError(
                f"Expected the packages of requirements.txt. Received: {error}. Install them, see README.md."
            ) from error
        except Exception as error:
            raise ProjectError(f"{name} failed: {type(error).__name__}: {error}") from error
        finally:
            reader.progress.close()
        if reader.position < len(pixels):
            raise ProjectError(
                f"Expected {name} to calibrate on {count(len(pixels), 'image')}. Received: it read {reader.position}. "
                "Its file would not represent the method: look at its log."
            )
        sidecar = PeerFile(
            name=name,
            **asdict(peer),
            settings=settings,
            model_sha256=sha256_file(model),
            images_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
            images=len(pixels),
            seed=seed,
            seconds=round(seconds, 1),
            cpu_seconds=round(busy, 1),
            peak_rss_mib=peak_memory_mib(),
            bytes=int8.stat().st_size,
            sha256=sha256_file(int8),
            opset=next(opset.version for opset in result.opset_import if opset.domain in ("", "ai.onnx")),
            placement=placement(result),
            versions={"python": platform.python_version(), **versions_of(PACKAGES)},
        )
        # The sidecar is written last, so that its model is complete wherever it exists.
        (out / f"{name}.json").unlink(missing_ok=True)
        commit_file(int8, out / f"{name}.onnx")
        write_atomic(out / f"{name}.json", json.dumps(to_json(sidecar), indent=2) + "\n")
    return sidecar


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="FP32 ONNX model with one input")
    parser.add_argument("--images", type=Path, required=True, help=".npz with the calibration images, array `pixels`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files; created if missing")
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
    """Make a process for one peer, with its own memory, that ends with this process, also on kill -9."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the files; return 0, 1 where a peer failed, 2 for bad input, or 130 when interrupted."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if missing := [path for path in (options.model, options.images) if not path.is_file()]:
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
        settings = {"limit": options.limit, "seed": options.seed, "batch": options.batch}
        try:
            with own_process() as pool:
                sidecar = pool.submit(run_peer, name, options.model, options.images, options.out, **settings).result()
        except (ProjectError, OSError) as error:
            failed[name] = str(error)
        except KeyboardInterrupt:
            log.error("  interrupted; the files written before are complete")
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
        done[name] = {field: getattr(sidecar, field) for field in ("images", "seconds", "peak_rss_mib", "sha256")}
    print(json.dumps({"done": done, "failed": failed}))
    return 1 if failed else 0
