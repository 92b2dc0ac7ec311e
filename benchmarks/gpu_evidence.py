"""Proves and measures a model's engines on the GPU of this machine, from artifacts that came from another one.

Needs numpy, TensorRT and cuda-bindings, no network, Python 3.10 or later; PyTorch is timed beside them where it is.
What is known is written after every step, so that a crash of a driver or a library loses nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_checks import CHECKS, CheckFailedError, CheckSkippedError, cycles_leak_nothing
from benchmarks.gpu_timings import judge_targets, time_batch
from benchmarks.telemetry import commit, gpu_snapshot, machine
from export.bounded_json import parse_json
from export.build_options import BuildOptions
from export.capabilities import TensorRT, find_tensorrt, why_missing
from export.driver import driver_status
from export.engine import build_engine
from export.errors import ExportError
from export.records import to_json
from export.sidecar import BatchProfile
from pipeline.answering import answer
from pipeline.errors import DataError, PipelineError
from pipeline.files import write_json
from pipeline.float_noise import noise_of
from pipeline.layout import KERAS, ONNX, PARITY, REFERENCE, engine_source, plan_name
from pipeline.manifest import as_recorded, read_manifest
from pipeline.npz_files import read_arrays
from pipeline.output_files import check_folder, check_output
from pipeline.parity import Candidate, Reference, judge
from pipeline.parity_report import FAIL, read_parity
from pipeline.recipe import VerifyThresholds
from pipeline.runners.tensorrt import TensorRTRunner

log = logging.getLogger("benchmarks.gpu")

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"
RESNET50_CONVOLUTIONS = 53
DONE, FAILED, BAD_INPUT, NO_GPU = 0, 1, 2, 3
EXAMPLES = """examples:
  python -m benchmarks.gpu_evidence artifacts/imagenet
  mkdir imagenet && tar xf imagenet.bundle.tar -C imagenet
  python -m benchmarks.gpu_evidence imagenet --flavour tensorrt --batch 256

exit status:
  0 every check passed, every engine keeps Keras' answers     1 one does not
  2 bad input     3 no GPU, or no TensorRT: nothing was measured"""


def gather(
    artifacts: Path,
    reference: Reference,
    plans: Path,
    trt: TensorRT,
    args: argparse.Namespace,
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Build, check, compare and time.

    Args:
        artifacts: with the `ONNX` files.
        reference: Keras' answers.
        plans: folder for the engines.
        trt: the library.
        args: of `build_parser`.
        save: called with what is known, after every step.

    Returns:
        dict: the content of the evidence file.
    """
    status = driver_status()
    evidence: dict[str, Any] = {
        "schema": SCHEMA,
        "commit": args.commit or commit(),
        "machine": machine(),
        "tensorrt": {"flavour": trt.flavour, "version": trt.version},
        "model": {
            "name": artifacts.resolve().name,
            "size": list(reference.pixels.shape[1:3]),
            "classes": reference.logits.shape[1],
            "test_images": len(reference.pixels),
        },
        "gpu_before": gpu_snapshot(),
    }
    save(evidence)
    throughput, latency = BatchProfile(1, args.batch, args.batch), BatchProfile(1, 1, 1)
    evidence["engines"] = {}
    for precision in args.precisions:
        for variant, profile in (("throughput", throughput), ("latency", latency)):
            name = f"{precision}-{variant}"
            log.info("building %s", name)
            evidence["engines"][name] = _build(artifacts, plans, precision, variant, profile, trt, args.targets)
            save(evidence)
    built = {
        name: plans / f"{name}.plan" for name, described in evidence["engines"].items() if "error" not in described
    }
    evidence["parity"] = _parity(built, reference, read_thresholds(artifacts))
    save(evidence)
    evidence["checks"] = []
    for check, name in [(check, name) for name in built for check in CHECKS]:
        evidence["checks"].append(_check(check, name, built[name], reference.pixels))
        save(evidence)
    if built:
        smallest = min(built, key=lambda name: built[name].stat().st_size)

        def cycles(plan: Path, pixels: np.ndarray) -> str:
            return cycles_leak_nothing(plan, pixels, args.cycles)

        cycles.__name__ = cycles_leak_nothing.__name__
        evidence["checks"].append(_check(cycles, smallest, built[smallest], reference.pixels))
        save(evidence)
    evidence["timings"] = []
    for variant, batch in (("latency", 1), ("throughput", args.batch)):
        chosen = {name.partition("-")[0]: plan for name, plan in built.items() if name.endswith(variant)}
        log.info("timing a batch of %d", batch)
        model = None if args.no_peer else artifacts / ONNX["fp32"]
        evidence["timings"] += time_batch(
            chosen, reference.pixels, batch, args.seconds, model, stream=variant == "throughput"
        )
        save(evidence)
    layers: dict[str, int] = next(
        (one["network_layers"] for one in evidence["engines"].values() if "network_layers" in one), {}
    )
    resnet50 = layers.get("CONVOLUTION") == RESNET50_CONVOLUTIONS and evidence["model"]["size"] == [224, 224]
    gpu = status.devices[0].name if status else None
    evidence["targets"] = judge_targets(evidence["timings"], gpu, resnet50)
    evidence["gpu_after"] = gpu_snapshot()
    save(evidence)
    return evidence


def read_reference(artifacts: Path) -> Reference:
    """Read Keras' answers, as the verify stage of another machine wrote them.

    Raises:
        PipelineError: they are not there, or are not such a file.
    """
    path = artifacts / REFERENCE
    try:
        if read_manifest(path.parent) is not None and not as_recorded(path):
            raise ValueError("it is not what the verify stage wrote")
        held = read_arrays(path, ("meta", "pixels", "labels", "logits"))
        meta = parse_json(held["meta"].tobytes(), "meta")
        return Reference(KERAS, meta["model_sha256"], held["pixels"], held["labels"], held["logits"], noise_of(meta))
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise PipelineError(
            f"Expected Keras' answers in {path}. Received: {error}. Run the recipe's verify stage, then bring its "
            "artifacts here: python -m pipeline bundle."
        ) from error


def _build(
    artifacts: Path,
    plans: Path,
    precision: str,
    variant: str,
    profile: BatchProfile,
    trt: TensorRT,
    targets: Sequence[str],
) -> dict[str, Any]:
    """Build an engine; give what evidence needs of its sidecar, or the error."""
    source = artifacts / engine_source(precision, trt.strongly_typed)
    options = BuildOptions(timing_cache=plans / "timing.cache" if trt.timing_cache else None, targets=targets)
    try:
        sidecar = build_engine(
            source,
            plans / plan_name(precision, variant),
            precision=precision,
            profile=profile,
            trt=trt,
            options=options,
            variant=variant,
        )
    except ExportError as error:
        log.error("%s: %s", precision, error)
        return {"error": str(error)}
    kept = ("precision", "profile", "plan_bytes", "seconds", "options", "asked", "found", "warnings", "network_layers")
    described = {key: value for key, value in to_json(sidecar).items() if key in kept}
    for side in ("asked", "found"):  # counts say it; the layers themselves are in the sidecar
        described[side] = {k: v for k, v in (described[side] or {}).items() if k != "layers"} or None
    described["options"] = {k: v for k, v in described["options"].items() if k != "timing_cache"}
    return described


def _parity(built: Mapping[str, Path], reference: Reference, thresholds: VerifyThresholds) -> dict[str, Any]:
    candidates = [
        Candidate(name, "tensorrt", name.partition("-")[0], "", None, lambda plan=plan: TensorRTRunner(plan))  # type: ignore[misc]
        for name, plan in built.items()
    ]
    answers = {one.name: answer(one, reference.pixels, 32, lambda images: None) for one in candidates}
    judged = judge(candidates, answers, reference, thresholds)
    return {key: to_json(judged)[key] for key in ("verdict", "thresholds", "hops")}


def read_thresholds(artifacts: Path) -> VerifyThresholds:
    """Read what the recipe asked of each precision, from the verdict of its verify stage; without one the defaults.

    Raises:
        PipelineError: the verdict is damaged.
    """
    path = artifacts / PARITY
    asked = read_parity(path).thresholds if path.is_file() else {}
    return VerifyThresholds(**{name: limits for name, limits in asked.items() if name in ONNX})


def _check(check: Callable[[Path, np.ndarray], str], name: str, plan: Path, pixels: np.ndarray) -> dict[str, Any]:
    row = {"check": check.__name__, "engine": name}
    try:
        row |= {"result": "pass", "detail": check(plan, pixels)}
    except CheckSkippedError as skipped:
        row |= {"result": "skipped", "detail": str(skipped)}
    except (CheckFailedError, PipelineError, ExportError) as error:
        row |= {"result": "fail", "detail": str(error)}
    except Exception as error:  # whatever a library raises: the other checks are to be made all the same
        row |= {"result": "fail", "detail": f"{type(error).__name__}: {error}"}
    log.info("%s, %s: %s (%s)", name, row["check"], row["result"], row["detail"])
    return row


def target_table(targets: Sequence[Mapping[str, Any]]) -> str:
    """The targets as text."""
    lines = []
    for one in targets:
        said = {True: "met", False: "missed", None: one["why"]}[one["met"]]
        measured = "" if one["measured"] is None else f"{one['measured']:g}, "
        lines.append(f"  {one['target']}: {measured}target {one['limit']:g}: {said}")
    return "\n".join(lines)


def evidence_path(gpu: str, trt: TensorRT) -> Path:
    """``benchmarks/results/<gpu>-<tensorrt>.json``."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-")
    return RESULTS / f"{slug}-{trt.flavour}-{trt.version}.json"


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_evidence",
        description="Build, check, compare with Keras and time a model's engines on this GPU, and write what was seen.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("artifacts", type=Path, help="a recipe's artifacts, or an unpacked bundle")
    parser.add_argument("-o", "--output", type=Path, help="default: benchmarks/results/<gpu>-<tensorrt>.json")
    parser.add_argument("--flavour", choices=("tensorrt", "rtx"), help="default: the first that is installed")
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=["fp32", "fp16", "int8"])
    parser.add_argument("--targets", type=lambda text: text.split(","), default=(), help="rtx: such as current or SM89")
    parser.add_argument("--batch", type=int, default=256, help="largest batch (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured a candidate (default: %(default)s)")
    parser.add_argument("--cycles", type=int, default=1000, help="of the leak check (default: %(default)s)")
    parser.add_argument("--no-peer", action="store_true", help="leave PyTorch out")
    parser.add_argument("--plans", type=Path, help="folder to keep the engines in (default: a temporary one)")
    parser.add_argument("--commit", help="of this code, where there is no repository")
    return parser


def _check_arguments(args: argparse.Namespace) -> Reference:
    """Refuse what cannot be measured, before a GPU is looked for, so that a bundle can be checked where it is made.

    Raises:
        PipelineError: what was expected, and what to do.
    """
    known = set(ONNX)
    if args.batch < 2 or args.cycles < 1 or args.seconds <= 0 or not set(args.precisions) <= known:
        raise PipelineError(
            f"Expected --batch of at least 2, --cycles of at least 1, --seconds above 0 and --precisions of "
            f"{','.join(ONNX)}. Received: {args.batch}, {args.cycles}, {args.seconds:g}, {','.join(args.precisions)}."
        )
    if args.output is not None:
        check_output(args.output, "-o", "evidence.json", (".json",))
    if args.plans is not None:
        check_folder(args.plans, "--plans")
    if not args.artifacts.is_dir():
        what = "which is a file: unpack a bundle first" if args.artifacts.exists() else "which does not exist"
        near = sorted(p.name for p in args.artifacts.parent.glob("*/") if (p / REFERENCE).is_file())
        there = f" In {args.artifacts.parent} there are: {', '.join(near)}." if near else ""
        raise PipelineError(
            f"Expected a folder of a recipe's artifacts, or of an unpacked bundle. Received: {args.artifacts}, {what}."
            f"{there}"
        )
    absent = [
        name
        for name in (*(ONNX[precision] for precision in args.precisions), REFERENCE)
        if not (args.artifacts / name).is_file()
    ]
    if absent:
        raise PipelineError(
            f"Expected a recipe's artifacts in {args.artifacts}. Received: no {', '.join(absent)}. Run the recipe, "
            "verify included, and bring its artifacts here: python -m pipeline bundle, there."
        )
    return read_reference(args.artifacts)


def main(argv: Sequence[str] | None = None) -> int:
    """Gather evidence; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        reference = _check_arguments(args)
    except PipelineError as error:
        log.error("%s", error)
        return BAD_INPUT
    status = driver_status()
    trt = find_tensorrt(args.flavour) if status else None  # without a driver some versions crash when they are used
    if trt is None:
        why = status.reason if not status else "; ".join(why_missing().values())
        log.error("Expected an NVIDIA GPU and TensorRT. Received: %s. Nothing was measured.", why)
        print(target_table(judge_targets([], None, False)))
        return NO_GPU
    output = args.output or evidence_path(status.devices[0].name, trt)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            plans = args.plans or Path(temporary)
            evidence = gather(args.artifacts, reference, plans, trt, args, lambda known: write_json(output, known))
    except (PipelineError, ExportError) as error:
        log.error("%s", error)
        return BAD_INPUT
    print(target_table(evidence["targets"]))
    failed = [row for row in evidence["checks"] if row["result"] == "fail"]
    errors = [name for name, one in evidence["engines"].items() if "error" in one]
    print(
        json.dumps(
            {"output": str(output), "parity": evidence["parity"]["verdict"], "failed": len(failed) + len(errors)}
        )
    )
    return FAILED if failed or errors or evidence["parity"]["verdict"] == FAIL else DONE


if __name__ == "__main__":
    sys.exit(main())
