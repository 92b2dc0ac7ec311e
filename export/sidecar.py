"""The sidecar: a JSON file beside each plan that says what it is, for which TensorRT and GPU, made from what.

Deserialising a plan runs code in it, so `check_engine` compares before anything is loaded.
Standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.bounded_json import read_json_file
from export.capabilities import TensorRT
from export.driver import AMPERE, as_numbers
from export.errors import ExportError

SCHEMA = 2
INPUT = "images"  # uint8, (N, height, width, 3)
OUTPUTS = ("logits", "probabilities")  # float32, (N, classes)
TOP_OUTPUTS = ("top_probabilities", "top_classes")  # float32 and int32, (N, k), best first; with export.top_k only
REBUILD = "python -m pipeline build -c RECIPE --force"

_REQUIRED: Mapping[str, type | tuple[type, ...]] = {
    "schema": int,
    "flavour": str,
    "tensorrt_version": str,
    "compute_capability": (str, type(None)),
    "targets": list,
    "precision": str,
    "onnx_sha256": str,
    "plan_sha256": str,
    "plan_bytes": int,
    "profile": dict,
    "tensors": list,
    "options": dict,
}
# Version-compatible plans of one major version that the next runs (NVIDIA's support matrix of 11.4).
_RUN_BY_NEXT = ((8, 10), (10, 11))


def sidecar_path(plan_path: str | os.PathLike[str]) -> Path:
    """Give the path of a plan's sidecar: ``fp16.plan`` has ``fp16.json``."""
    return Path(plan_path).with_suffix(".json")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_plan(plan_path: Path, plan: Any, sidecar: Mapping[str, Any]) -> None:
    """Write a plan and its sidecar; a crash at any moment leaves the old pair, the new, or one that is refused.

    Args:
        plan_path: where the plan goes; its folder is made.
        plan: the serialised engine, anything with the buffer protocol.
        sidecar: what `read_sidecar` is to return.

    Raises:
        ExportError: the disk refused; nothing half-written is left.
    """
    target = sidecar_path(plan_path)
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in (plan_path, target)]
    text = (json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n").encode()
    plan_replaced = False
    try:
        plan_path.parent.mkdir(parents=True, exist_ok=True)
        for path, data in zip(temporary, (plan, text)):
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary[0], plan_path)
        plan_replaced = True
        os.replace(temporary[1], target)
        _sync_folder(plan_path.parent)
    except OSError as error:
        if plan_replaced:  # a plan without its own sidecar must not stay
            plan_path.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
        raise ExportError(
            f"Expected to write {plan_path.name} and {target.name} in {plan_path.parent}. Received: {error}. "
            "Free space there or correct the permissions, then build again."
        ) from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_sidecar(plan_path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check the form of a plan's sidecar.

    Raises:
        ExportError: it is missing, not JSON, of another schema, or lacks something.
    """
    path = sidecar_path(plan_path)
    try:
        content = read_json_file(path)
    except OSError as error:
        raise ExportError(
            f"Expected the sidecar {path} beside {Path(plan_path).name}. "
            f"Received: {error.strerror or error}. A plan without one is not loaded; rebuild it: {REBUILD}."
        ) from error
    except ValueError as error:
        raise ExportError(f"Expected JSON in {path}. Received: {error}. Rebuild the engine: {REBUILD}.") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        had = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ExportError(
            f"Expected an engine sidecar of schema {SCHEMA} in {path}. Received: {had!r}. "
            f"Rebuild the engine: {REBUILD}."
        )
    for key, kind in _REQUIRED.items():
        if key not in content or not isinstance(content[key], kind):
            had = f"{content[key]!r}" if key in content else "nothing"
            names = kind.__name__ if isinstance(kind, type) else " or ".join(one.__name__ for one in kind)
            raise ExportError(
                f"Expected '{key}' of type {names} in {path}. Received: {had}. Rebuild the engine: {REBUILD}."
            )
    for key in ("min", "opt", "max"):
        if not isinstance(content["profile"].get(key), int):
            raise ExportError(
                f"Expected whole numbers min, opt and max as 'profile' in {path}. "
                f"Received: {content['profile']!r}. Rebuild the engine: {REBUILD}."
            )
    return content


def check_plan(plan_path: str | os.PathLike[str]) -> dict[str, Any]:
    """Refuse a plan that is not the one that its sidecar describes.

    Returns:
        dict: the sidecar.

    Raises:
        ExportError: the sidecar is missing or malformed, or the plan is truncated or altered.
    """
    plan = Path(plan_path)
    sidecar = read_sidecar(plan)
    try:
        size = plan.stat().st_size
        if size != sidecar["plan_bytes"]:
            raise _refused(plan, f"{sidecar['plan_bytes']} bytes", f"{size} bytes: truncated or replaced")
        digest = sha256_file(plan)
    except OSError as error:
        raise _refused(plan, "a readable plan", str(error)) from error
    if digest != sidecar["plan_sha256"]:
        raise _refused(
            plan,
            f"sha256 {sidecar['plan_sha256']}",
            f"sha256 {digest}: the plan is not the one that was built",
        )
    return sidecar


def check_engine(
    plan_path: str | os.PathLike[str],
    trt: TensorRT,
    compute_capability: str | None = None,
    cuda_version: str | None = None,
) -> dict[str, Any]:
    """Refuse a plan that this TensorRT, this GPU or this driver must not load, before it is loaded.

    Args:
        plan_path: the plan; its sidecar lies beside it.
        trt: the TensorRT that is to load it.
        compute_capability: of the GPU that is to run it, such as "8.9". Defaults to None: not compared.
        cuda_version: the newest CUDA that the driver here runs, such as "13.0". Defaults to None: not compared.

    Returns:
        dict: the sidecar.

    Raises:
        ExportError: the sidecar is missing or malformed, the plan is not the one that it describes, or it is for
            another flavour, version, GPU or driver. The message names both sides and the command that rebuilds.
    """
    plan = Path(plan_path)
    sidecar = check_plan(plan)
    if sidecar["flavour"] != trt.flavour:
        raise _refused(plan, f"flavour {sidecar['flavour']}, which built it", f"flavour {trt.flavour} here")
    _check_version(plan, sidecar, trt)
    if compute_capability is not None:
        _check_compute_capability(plan, sidecar, compute_capability)
    if cuda_version is not None:
        _check_driver(plan, sidecar, cuda_version)
    return sidecar


def _check_version(plan: Path, sidecar: Mapping[str, Any], trt: TensorRT) -> None:
    built, here = sidecar["tensorrt_version"], trt.version
    if built == here:
        return
    if not sidecar["options"].get("version_compatible"):
        raise _refused(plan, f"TensorRT {built}, which built it", f"TensorRT {here} here")
    old, new = as_numbers(built), as_numbers(here)
    if not (old <= new and (old[:1] == new[:1] or (old[0], new[0]) in _RUN_BY_NEXT)):
        raise _refused(
            plan,
            f"TensorRT {built}, which built it as version-compatible, or a later one (10 runs those of 8, 11 of 10)",
            f"TensorRT {here} here",
        )


def _check_compute_capability(plan: Path, sidecar: Mapping[str, Any], here: str) -> None:
    targets, built = sidecar["targets"], sidecar["compute_capability"]
    if targets:
        if here not in targets:
            raise _refused(plan, f"a GPU of compute capability {' or '.join(map(str, targets))}", f"{here} here")
        return
    ampere_plus = sidecar["options"].get("hardware_compatibility") == "ampere_plus"
    if ampere_plus or built is None:  # none: TensorRT-RTX for its default targets
        if as_numbers(here) < AMPERE:
            raise _refused(plan, "a GPU of compute capability 8.0 or later", f"{here} here")
    elif built != here:
        raise _refused(plan, f"a GPU of compute capability {built}, where it was built", f"{here} here")


def _check_driver(plan: Path, sidecar: Mapping[str, Any], here: str) -> None:
    built = sidecar.get("cuda_version")
    if built is not None and as_numbers(here)[:1] < as_numbers(built)[:1]:
        raise _refused(
            plan,
            f"a driver for CUDA {built.partition('.')[0]}, as it was built with (CUDA {built})",
            f"a driver that runs CUDA {here} at most (a newer driver runs it too)",
        )


def _refused(plan: Path, expected: str, received: str) -> ExportError:
    return ExportError(
        f"The engine {plan} is not loaded. Expected {expected}. Received: {received}. Rebuild it: {REBUILD}."
    )
