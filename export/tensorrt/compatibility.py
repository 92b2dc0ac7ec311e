"""Decide whether a plan may be loaded, by its sidecar: deserialising a plan runs code in it, so it is checked before.

The module needs Python 3.10 and the standard library alone.
"""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from export.errors import ProjectError
from export.tensorrt.driver import AMPERE, no_support, supporting, version_numbers
from export.tensorrt.library import TensorRT
from export.tensorrt.sidecar import REBUILD, Sidecar, read_sidecar, sha256_file
from export.words import count, listed

# Major versions whose version-compatible plans the next major version runs (NVIDIA's support matrix of 11.4).
_RUN_BY_NEXT = ((8, 10), (10, 11))

_INSTEAD = {
    ".onnx": f"an ONNX file, which runs on ONNX Runtime. Engines are built from it: {REBUILD}.",
    ".keras": "a Keras model. `python -m pipeline inspect` describes it.",
    ".h5": "a Keras model. `python -m pipeline inspect` describes it.",
    ".engine": "an engine of another program, without the sidecar that describes it.",
    ".trt": "an engine of another program, without the sidecar that describes it.",
}
_BUILDERS = {
    "tensorrt": "TensorRT builds one, on a GPU machine",
    "rtx": "TensorRT-RTX builds one",
}
_trying: list[bool] = []  # an entry for each `trying_unsupported_gpus` that is open


class RefusedEngineError(ProjectError):
    """A plan that this machine must not load, or does not have.

    Attributes:
        settings: of the recipe's build section, to change before a rebuild; without them the rebuild would make the
            same engine. Often none.
    """

    def __init__(self, message: str, settings: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.settings = settings


class UnsupportedGpuError(RefusedEngineError):
    """The plan's TensorRT does not support the GPU: no plan of its flavour runs there.

    Attributes:
        reason: a short form of the message, for tables.
    """

    def __init__(self, message: str, settings: Mapping[str, Any], reason: str) -> None:
        super().__init__(message, settings)
        self.reason = reason


def rebuild(settings: Mapping[str, Any]) -> str:
    """Return the command that rebuilds an engine with other settings of the recipe's build section."""
    return REBUILD + "".join(f" --set {shlex.quote(word)}" for word in overrides(settings))


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return settings of the build section as arguments of ``--set``."""
    return [f"build.{key}={json.dumps(value)}" for key, value in settings.items()]


def require_plan(plan_path: str | os.PathLike[str]) -> None:
    """Refuse a path that is not a plan, before its sidecar is read.

    Raises:
        RefusedEngineError: the path does not exist (the message names the plans beside it, or what builds one), or
            it is something else.
    """
    plan = Path(plan_path)
    if plan.suffix == ".plan" and plan.is_file():
        return
    settings: dict[str, object] = {}
    if not os.path.lexists(plan):
        plans = sorted(path.name for path in plan.parent.glob("*.plan") if path.is_file())
        if (flavour := plan.parent.name) in _BUILDERS and not plans:
            settings = {"flavour": flavour}  # the default flavour of this machine may be another
        advice = (
            f"In {plan.parent} there are: {listed(plans)}"
            if plans
            else f"{_BUILDERS.get(flavour, 'This builds one')}: {rebuild(settings)}"
        )
        received = f"{plan}, which does not exist. {advice}."
    elif plan.is_dir():
        plans = sorted(str(path) for path in plan.rglob("*.plan"))
        received = f"{plan}, a folder" + (f" that holds {listed(plans)}. Name one of them." if plans else ".")
    elif not plan.exists():
        received = f"{plan}, a link that leads nowhere."
    elif plan.suffix == ".json" and plan.with_suffix(".plan").is_file():
        received = f"{plan}, the sidecar of an engine. Name the engine: {plan.with_suffix('.plan')}."
    else:
        received = f"{plan}, {_INSTEAD.get(plan.suffix.lower(), 'which is none.')}"
    raise RefusedEngineError(
        f"Expected an engine, such as artifacts/digits/build/rtx/fp16.plan. Received: {received}", settings
    )


def check_plan(plan_path: str | os.PathLike[str]) -> Sidecar:
    """Refuse a plan other than the one that its sidecar describes.

    Returns:
        Sidecar: the plan's.

    Raises:
        ProjectError: there is no such plan, its sidecar is missing or malformed, or it is truncated or altered.
    """
    plan = Path(plan_path)
    require_plan(plan)
    sidecar = read_sidecar(plan)
    try:
        size = plan.stat().st_size
        if size != sidecar.plan_bytes:
            raise _refused(plan, count(sidecar.plan_bytes, "byte"), f"{count(size, 'byte')}: truncated or replaced")
        digest = sha256_file(plan)
    except OSError as error:
        raise _refused(plan, "a readable plan", str(error)) from error
    if digest != sidecar.plan_sha256:
        raise _refused(
            plan,
            f"sha256 {sidecar.plan_sha256}",
            f"sha256 {digest}: the plan is not the one that was built",
        )
    return sidecar


def check_engine(
    plan_path: str | os.PathLike[str],
    trt: TensorRT,
    compute_capability: str | None = None,
    cuda_version: str | None = None,
) -> Sidecar:
    """Refuse a plan that this TensorRT, this GPU or this driver must not load, before it is loaded.

    Args:
        plan_path: the plan; its sidecar lies beside it.
        trt: the TensorRT that is to load it.
        compute_capability: of the GPU that is to run it, such as "8.9". Defaults to None: not compared.
        cuda_version: the newest CUDA that the driver here runs, such as "13.0". Defaults to None: not compared.

    Returns:
        Sidecar: the plan's.

    Raises:
        UnsupportedGpuError: this TensorRT does not support the GPU, see `trying_unsupported_gpus`.
        ProjectError: the sidecar is missing or malformed, the plan is not the one that it describes, or it is for
            another flavour, version, GPU or driver. The message names both sides and the command that rebuilds it.
    """
    plan = Path(plan_path)
    sidecar = check_plan(plan)
    if sidecar.flavour != trt.flavour:
        raise _refused(plan, f"flavour {sidecar.flavour}, which built it", f"flavour {trt.flavour} here")
    if compute_capability is not None and not _trying and trt.supports(compute_capability) is False:
        # Before the version is compared, because a rebuild with this TensorRT would not help.
        raise unsupported_gpu(plan, sidecar, trt.version, compute_capability, trt.generations())
    _check_version(plan, sidecar, trt)
    if compute_capability is not None:
        _check_compute_capability(plan, sidecar, compute_capability)
    built = sidecar.cuda_version
    if (
        cuda_version is not None
        and built is not None
        and version_numbers(cuda_version)[:1] < version_numbers(built)[:1]
    ):
        raise _refused(
            plan,
            f"a driver for CUDA {built.partition('.')[0]}, as it was built with (CUDA {built})",
            f"a driver that runs CUDA {cuda_version} at most (a newer driver runs it too)",
        )
    return sidecar


@contextmanager
def trying_unsupported_gpus() -> Iterator[None]:
    """Accept plans whose TensorRT does not support the GPU, in all threads, to get the library's own error."""
    _trying.append(True)
    try:
        yield
    finally:
        _trying.pop()


def unsupported_gpu(
    plan: Path, sidecar: Sidecar, version: str, here: str, generations: Sequence[str] = ()
) -> UnsupportedGpuError:
    """Make the error of a plan whose TensorRT does not support the GPU.

    Args:
        plan: the plan.
        sidecar: the plan's.
        version: of that TensorRT.
        here: compute capability of the GPU, such as "7.5".
        generations: GPU generations that this TensorRT supports, as "SM86". Defaults to none: not known.
    """
    reason = no_support(sidecar.flavour, here)
    supported = listed((f"{name[2:-1]}.{name[-1]}" for name in generations), most=9)
    settings = {"flavour": "tensorrt", **({"targets": []} if sidecar.targets else {})}  # classic takes no targets
    remedy = f" Where that is installed, rebuild it: {rebuild(settings)}." if supporting(here) else ""
    return UnsupportedGpuError(
        f"The engine {plan} is not loaded. {reason}. Expected a GPU that {sidecar.flavour} {version} supports"
        f"{f': compute capability {supported}' if supported else ''}. Received: compute capability {here} here."
        f"{remedy}",
        settings,
        reason,
    )


def _check_version(plan: Path, sidecar: Sidecar, trt: TensorRT) -> None:
    built, here = sidecar.tensorrt_version, trt.version
    old, new = version_numbers(built), version_numbers(here)
    compatible = sidecar.options.get("version_compatible")
    runs = compatible and old <= new and (old[:1] == new[:1] or (*old[:1], *new[:1]) in _RUN_BY_NEXT)
    if built != here and not runs:
        note = " as version-compatible, or a later one (10 runs those of 8, 11 of 10)" if compatible else ""
        raise _refused(plan, f"TensorRT {built}, which built it{note}", f"TensorRT {here} here")


def _check_compute_capability(plan: Path, sidecar: Sidecar, here: str) -> None:
    targets, built = sidecar.targets, sidecar.compute_capability
    ampere_plus = sidecar.options.get("hardware_compatibility") == "ampere_plus"
    if targets:
        if here not in targets:
            raise _refused(
                plan,
                f"a GPU of compute capability {' or '.join(targets)}",
                f"{here} here",
                {"targets": [*targets, here]},
            )
    elif ampere_plus or built is None:  # None: built by TensorRT-RTX for its default targets
        if version_numbers(here) < AMPERE:
            settings = {"hardware_compatibility": "none"} if ampere_plus else {"targets": [here]}
            raise _refused(plan, "a GPU of compute capability 8.0 or later", f"{here} here", settings)
    elif built != here:
        raise _refused(plan, f"a GPU of compute capability {built}, where it was built", f"{here} here")


def _refused(
    plan: Path, expected: str, received: str, settings: Mapping[str, Any] = MappingProxyType({})
) -> RefusedEngineError:
    return RefusedEngineError(
        f"The engine {plan} is not loaded. Expected {expected}. Received: {received}. Rebuild it: {rebuild(settings)}.",
        settings,
    )
