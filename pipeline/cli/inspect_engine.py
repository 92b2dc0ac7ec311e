"""``python -m pipeline engine``: what a TensorRT engine is, and whether it fits this machine. Loads nothing of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from export.errors import ProjectError
from export.tensorrt.compatibility import (
    RefusedEngineError,
    UnsupportedGpuError,
    check_engine,
    check_plan,
    overrides,
    rebuild,
    require_plan,
    unsupported_gpu,
)
from export.tensorrt.driver import DriverStatus, driver_status, supports
from export.tensorrt.library import find_tensorrt, why_missing
from export.tensorrt.sidecar import AskedLayers, FoundLayers, Sidecar, TensorInfo, read_sidecar
from export.words import count, listed
from pipeline.artifacts.manifest import read_manifest
from pipeline.artifacts.parity_report import NOT_VERIFIED
from pipeline.artifacts.paths import Artifacts
from pipeline.cli import options as cli
from pipeline.cli.bundle import RECIPE
from pipeline.recipe.load import load_recipe, to_dict
from pipeline.serving.candidates import Verdicts
from pipeline.terminal.command_line import ARTIFACTS, Invocation
from pipeline.workflow.environment import choose_tensorrt


@dataclass(frozen=True)
class InspectedEngine:
    """What an engine is, as the JSON line has it.

    Attributes:
        plan: the file.
        intact: whether it is the one that its sidecar describes.
        reason: why it is not; "" where it is.
        verdict: of the verify stage, with why it is none.
        engine: the sidecar.
        exit: the exit status.
    """

    plan: str
    intact: bool
    reason: str
    verdict: str
    engine: Sidecar
    exit: int


@dataclass(frozen=True)
class CheckedEngine:
    """Whether an engine fits this machine, as the JSON line has it.

    Attributes:
        plan: the file.
        fits: whether it does.
        reason: why it does not; "" where it does.
        rebuild: a command, where rebuilding here would help; None elsewhere.
        exit: the exit status.
    """

    plan: str
    fits: bool
    reason: str = ""
    rebuild: str | None = None
    exit: int = cli.DONE


def inspect_engine_file(plan: Path) -> InspectedEngine:
    """Print what an engine is, from its sidecar; the result holds the same for the JSON line.

    Raises:
        ProjectError: no engine, or its sidecar is missing or malformed.
    """
    with _naming_the_command(plan):
        require_plan(plan)
        sidecar = read_sidecar(plan)
    try:
        check_plan(plan)
        altered = ""
    except ProjectError as error:
        altered = _with_command(str(error), plan)
    verdict = _verdict(plan)
    print("\n".join(map(_printable, _lines(plan, sidecar, altered, verdict))))
    status = cli.NOT_FITTING if altered else cli.DONE
    return InspectedEngine(str(plan), not altered, altered, verdict, sidecar, status)


def check_engine_file(plan: Path) -> CheckedEngine:
    """Say whether an engine fits this machine; if not, both sides and what to do.

    Raises:
        ProjectError: no engine, or one that was damaged or altered.
    """
    driver = driver_status()
    with _naming_the_command(plan):
        sidecar = check_plan(plan)
    refused = _why_not(plan, sidecar, driver)
    if refused is None:
        device = driver.devices[0]
        print(f"{plan} fits this machine: {device.name}, compute capability {device.compute_capability}")
        return CheckedEngine(str(plan), fits=True)
    print(f"{plan} does not fit this machine: {_with_command(str(refused), plan, _settings(refused))}")
    command = rebuild_command(plan, _settings(refused)) if _can_rebuild(refused) else None
    return CheckedEngine(str(plan), False, str(refused), command, cli.NOT_FITTING)


def rebuild_command(plan: Path, settings: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The command that builds an engine anew, with its recipe where the plan lies below ``artifacts/<recipe>/build``.

    Options that its recipe does not say, as ``--set`` gave them when it was built, are repeated.

    Args:
        plan: the engine.
        settings: of the build section, instead of what the recipe says. Defaults to none.
    """
    root = _root(plan)
    if root is None:
        return Invocation(Path("RECIPE"), overrides=overrides(settings)).command("build", more=("--force",))
    named = Path("configs") / f"{root.name}.yaml"
    recipe = next((path for path in (named, root / RECIPE) if path.is_file()), Path("RECIPE"))
    artifacts = ARTIFACTS if root.parent.resolve() == ARTIFACTS.resolve() else root.parent
    built = Invocation(recipe, artifacts, overrides({**_overrides(recipe, root), **settings}))
    return built.command("build", more=("--force",))


def _overrides(recipe: Path, root: Path) -> dict[str, object]:
    manifest = read_manifest(root / "build")
    if manifest is None or not recipe.is_file():
        return {}
    try:
        says = to_dict(load_recipe(recipe).build)
    except ProjectError:  # it wants a path that its owner gives with --set
        return {}
    built = manifest.config.get("build", {})
    return {key: value for key, value in built.items() if says.get(key, value) != value}


def _root(plan: Path) -> Path | None:
    """``artifacts/<recipe>`` of a plan in ``artifacts/<recipe>/build/<flavour>/``; None elsewhere."""
    folder = plan.absolute().parent.parent
    if folder.name != "build":
        return None
    cwd = Path.cwd()
    return folder.parent.relative_to(cwd) if folder.parent.is_relative_to(cwd) else folder.parent


@contextmanager
def _naming_the_command(plan: Path) -> Iterator[None]:
    """Let errors say the exact command that rebuilds the plan."""
    try:
        yield
    except ProjectError as error:
        raise ProjectError(_with_command(str(error), plan, _settings(error))) from error


def _why_not(plan: Path, sidecar: Sidecar, driver: DriverStatus) -> ProjectError | None:
    """Why an engine does not fit this machine; None: it does."""
    flavour, version = sidecar.flavour, sidecar.tensorrt_version
    here = driver.devices[0].compute_capability if driver else None
    trt = find_tensorrt(flavour)
    if trt is None and here is not None and supports(flavour, version, here) is False:
        return unsupported_gpu(plan, sidecar, version, here)
    if trt is None:
        had = why_missing().get(flavour, "none")
        return ProjectError(f"Expected TensorRT {flavour} {version}, which built it. Received: {had}.")
    try:
        check_engine(plan, trt, here, driver.cuda_version if driver else None)
    except ProjectError as error:
        return error
    if driver:
        return None
    return ProjectError(
        f"Expected an NVIDIA GPU: {sidecar.runs_on}. Received: {driver.reason}. "
        "Run it on the GPU machine; ONNX Runtime answers here."
    )


def _settings(refused: ProjectError) -> Mapping[str, Any]:
    return refused.settings if isinstance(refused, RefusedEngineError) else {}


def _can_rebuild(refused: ProjectError) -> bool:
    """Whether building the engine anew on this machine helps."""
    if isinstance(refused, UnsupportedGpuError):
        return choose_tensorrt("tensorrt")[0] is not None
    return isinstance(refused, RefusedEngineError)


def _with_command(message: str, plan: Path, settings: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The message with the exact command on a line of its own, safe to paste."""
    return message.replace(f" {rebuild(settings)}.", f"\n  {rebuild_command(plan, settings)}")


def _printable(line: str) -> str:
    """The line without what a terminal takes for a command; a sidecar may come from anywhere."""
    return "\n".join("".join(c if c.isprintable() else "?" for c in part) for part in line.split("\n"))


def _verdict(plan: Path) -> str:
    root = _root(plan)
    if root is None:
        return NOT_VERIFIED
    found = Verdicts(Artifacts(root)).on(f"build/{plan.absolute().parent.name}/{plan.name}")
    return f"{found.verdict} ({found.why})" if found.why else found.verdict


def _lines(plan: Path, sidecar: Sidecar, altered: str, verdict: str) -> list[str]:
    profile = sidecar.profile
    if sidecar.gpu:
        built_on = f"{sidecar.gpu}, driver {sidecar.driver_version or 'not told'}, CUDA {sidecar.cuda_version}"
    else:
        built_on = "a machine without a GPU"
    variant = f", variant {sidecar.variant}" if sidecar.variant else ""
    tensors = {mode: [_tensor(one) for one in sidecar.tensors if one.mode == mode] for mode in _MODES}
    classes = sidecar.classes or ()
    facts = {
        "precision": f"{sidecar.precision}{variant}",
        "TensorRT": f"{sidecar.flavour} {sidecar.tensorrt_version}",
        "built on": built_on,
        "runs on": sidecar.runs_on,
        "batch": f"min {profile.min}, opt {profile.opt}, max {profile.max}",
        **{mode: "; ".join(listed) for mode, listed in tensors.items()},
        "classes": f"{len(classes)}: {listed(classes, most=8)}" if classes else "unnamed",
        "preprocessing": _preprocessing(sidecar.preprocessing),
        "options": _options(sidecar.options),
        "size": f"{sidecar.plan_bytes / 1e6:.1f} MB, built in {sidecar.seconds} s",
        "plan sha256": sidecar.plan_sha256,
        "made from": sidecar.onnx_file,
        "ONNX sha256": sidecar.onnx_sha256,
        "verdict": verdict,
        "asked": _counts(sidecar.asked),
        "found": _found(sidecar),
    }
    lines = [str(plan), *(f"  {name:<14} {value}" for name, value in facts.items() if value)]
    lines += [f"  {'warning':<14} {text}" for text in [*([altered] if altered else []), *sidecar.warnings]]
    layers = sidecar.found.layers if sidecar.found else ()
    if layers:
        lines.append(f"\n  {'type':<8} {'kind':<22} {'Keras layers':<30} layer")
    for layer in layers:
        keras = listed(layer.layers, most=3)
        lines.append(f"  {layer.precision:<8} {layer.kind:<22} {keras:<30} {layer.name}")
    return lines


_MODES = ("input", "output")


def _tensor(one: TensorInfo) -> str:
    return f"{one.name} {one.dtype} {list(one.shape)}"


def _preprocessing(spec: Any) -> str:
    if not isinstance(spec, Mapping):
        return "not recorded"
    shown = {key: spec[key] for key in ("mode", "channel_order", "mean", "scale") if key in spec}
    for key in ("mean", "scale"):
        if isinstance(shown.get(key), list) and all(isinstance(value, (int, float)) for value in shown[key]):
            shown[key] = "/".join(f"{value:.6g}" for value in shown[key])
    return f"in the engine: {', '.join(f'{key} {value}' for key, value in shown.items())}"


def _options(options: Mapping[str, Any]) -> str:
    """Those that are not TensorRT's defaults."""
    said = {key: value for key, value in options.items() if value not in (None, False, "none", []) and key != "flags"}
    said.pop("strongly_typed", None)
    return ", ".join(f"{key} {value}" for key, value in said.items()) or "defaults"


def _found(sidecar: Sidecar) -> str:
    text = _counts(sidecar.found)
    if sidecar.found is None or not text:
        return f"not known: {sidecar.layers_reason}"
    if outputs := sidecar.found.int8_outputs:
        text += f"; {outputs.get('int8', 0)} of {count(sum(outputs.values()), 'INT8 convolution')} writing INT8"
    return f"{text} (as its builder listed them; {sidecar.layers_reason})" if sidecar.layers_reason else text


def _counts(side: AskedLayers | FoundLayers | None) -> str:
    if side is None or not side.convolutions:
        return ""
    text = "convolutions: " + ", ".join(f"{number} {kind}" for kind, number in side.convolutions.items())
    reformats = side.reformats if isinstance(side, FoundLayers) else ()
    return text + (f"; layers that only change a format: {len(reformats)}" if reformats else "")
