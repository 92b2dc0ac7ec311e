"""``python -m pipeline engine``: describe a TensorRT engine, or check that it fits this machine; loads none of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from export.errors import ProjectError
from export.records import to_json
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
from export.tensorrt.sidecar import EngineLayers, RequestedLayers, Sidecar, read_sidecar
from export.words import count, listed
from pipeline.artifacts.manifest import read_manifest
from pipeline.artifacts.parity_report import NOT_VERIFIED
from pipeline.artifacts.paths import Artifacts
from pipeline.cli import options as cli
from pipeline.recipe.load import load_recipe, to_dict
from pipeline.recipe.locate import UNPACKED
from pipeline.serving.candidates import Verdicts
from pipeline.terminal.command_line import ARTIFACTS, Invocation
from pipeline.workflow.environment import choose_tensorrt


def inspect_engine_file(plan: Path) -> dict[str, object]:
    """Print what an engine is, from its sidecar.

    Args:
        plan: the engine's file.

    Returns:
        dict[str, object]: for the JSON line: "plan"; "intact", whether it is the file that its sidecar describes, and
        the "reason" where it is not; "verdict" of the verify stage; "engine", the sidecar; "exit".

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
    return {
        **{"plan": str(plan), "intact": not altered, "reason": altered, "verdict": verdict},
        **{"engine": to_json(sidecar), "exit": cli.NOT_FITTING if altered else cli.DONE},
    }


def check_engine_file(plan: Path) -> dict[str, object]:
    """Print whether an engine fits this machine; if not, what it needs, what is here and what to do.

    Args:
        plan: the engine's file.

    Returns:
        dict[str, object]: for the JSON line: "plan"; "fits", and the "reason" where it does not; "rebuild", a command
        where rebuilding here would help, else None; "exit".

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
        return {"plan": str(plan), "fits": True, "reason": "", "rebuild": None, "exit": cli.DONE}
    print(f"{plan} does not fit this machine: {_with_command(str(refused), plan, _settings(refused))}")
    command = rebuild_command(plan, _settings(refused)) if _can_rebuild(refused) else None
    return {"plan": str(plan), "fits": False, "reason": str(refused), "rebuild": command, "exit": cli.NOT_FITTING}


def rebuild_command(plan: Path, settings: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the command that rebuilds an engine, with its recipe where it is in ``artifacts/<recipe>/build``.

    Options that differ from its recipe, because ``--set`` gave them when it was built, are repeated.

    Args:
        plan: the engine's file.
        settings: keys of the build section that replace the recipe's. Defaults to none.
    """
    root = _root(plan)
    if root is None:
        return Invocation(Path("RECIPE"), overrides=overrides(settings)).command("build", more=("--force",))
    candidates = (Path("configs") / f"{root.name}.yaml", root / UNPACKED)
    recipe = next((path for path in candidates if path.is_file()), Path("RECIPE"))
    artifacts = ARTIFACTS if root.parent.resolve() == ARTIFACTS.resolve() else root.parent
    options = overrides({**_overrides(recipe, root), **settings})
    return Invocation(recipe, artifacts, options).command("build", more=("--force",))


def _overrides(recipe: Path, root: Path) -> dict[str, object]:
    manifest = read_manifest(root / "build")
    if manifest is None or not recipe.is_file():
        return {}
    try:
        build = to_dict(load_recipe(recipe).build)
    except ProjectError:  # it needs a path that its owner gives with --set
        return {}
    return {key: value for key, value in manifest.config.get("build", {}).items() if build.get(key, value) != value}


def _root(plan: Path) -> Path | None:
    """Return ``artifacts/<recipe>`` of a plan in ``artifacts/<recipe>/build/<flavour>/``; None elsewhere."""
    folder = plan.absolute().parent.parent
    if folder.name != "build":
        return None
    cwd = Path.cwd()
    return folder.parent.relative_to(cwd) if folder.parent.is_relative_to(cwd) else folder.parent


@contextmanager
def _naming_the_command(plan: Path) -> Iterator[None]:
    """Put the exact command that rebuilds the plan into errors."""
    try:
        yield
    except ProjectError as error:
        raise ProjectError(_with_command(str(error), plan, _settings(error))) from error


def _why_not(plan: Path, sidecar: Sidecar, driver: DriverStatus) -> ProjectError | None:
    """Return why an engine does not fit this machine; None where it fits."""
    flavour, version = sidecar.flavour, sidecar.tensorrt_version
    capability = driver.devices[0].compute_capability if driver else None
    trt = find_tensorrt(flavour)
    if trt is None and capability is not None and supports(flavour, version, capability) is False:
        return unsupported_gpu(plan, sidecar, version, capability)
    if trt is None:
        return ProjectError(
            f"Expected TensorRT {flavour} {version}, which built it. Received: {why_missing().get(flavour, 'none')}."
        )
    try:
        check_engine(plan, trt, capability, driver.cuda_version if driver else None)
    except ProjectError as error:
        return error
    if driver:
        return None
    return ProjectError(
        f"Expected an NVIDIA GPU: {sidecar.runs_on}. Received: {driver.reason}. "
        "Run it on the GPU machine; ONNX Runtime runs the ONNX files here."
    )


def _settings(refused: ProjectError) -> Mapping[str, Any]:
    return refused.settings if isinstance(refused, RefusedEngineError) else {}


def _can_rebuild(refused: ProjectError) -> bool:
    """Return whether rebuilding the engine on this machine helps."""
    if isinstance(refused, UnsupportedGpuError):
        return choose_tensorrt("tensorrt")[0] is not None
    return isinstance(refused, RefusedEngineError)


def _with_command(message: str, plan: Path, settings: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the message with the exact command on a line of its own, to copy and paste."""
    return message.replace(f" {rebuild(settings)}.", f"\n  {rebuild_command(plan, settings)}")


def _printable(line: str) -> str:
    """Return the line without control characters, which a sidecar from elsewhere might use against the terminal."""
    return "\n".join("".join(c if c.isprintable() else "?" for c in part) for part in line.split("\n"))


def _verdict(plan: Path) -> str:
    root = _root(plan)
    if root is None:
        return NOT_VERIFIED
    verdict = Verdicts(Artifacts(root)).on(f"build/{plan.absolute().parent.name}/{plan.name}")
    return f"{verdict.verdict} ({verdict.why})" if verdict.why else verdict.verdict


def _lines(plan: Path, sidecar: Sidecar, altered: str, verdict: str) -> list[str]:
    profile, classes = sidecar.profile, sidecar.classes or ()
    gpu = f"{sidecar.gpu}, driver {sidecar.driver_version or 'unknown'}, CUDA {sidecar.cuda_version}"
    facts = {
        "precision": sidecar.precision + (f", variant {sidecar.variant}" if sidecar.variant else ""),
        "TensorRT": f"{sidecar.flavour} {sidecar.tensorrt_version}",
        "built on": gpu if sidecar.gpu else "a machine without a GPU",
        "runs on": sidecar.runs_on,
        "batch": f"min {profile.min}, opt {profile.opt}, max {profile.max}",
        **{
            mode: "; ".join(f"{one.name} {one.dtype} {list(one.shape)}" for one in sidecar.tensors if one.mode == mode)
            for mode in ("input", "output")
        },
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
    if sidecar.found and sidecar.found.layers:
        lines.append(f"\n  {'type':<8} {'kind':<22} {'Keras layers':<30} layer")
        lines += [
            f"  {layer.precision:<8} {layer.kind:<22} {listed(layer.layers, most=3):<30} {layer.name}"
            for layer in sidecar.found.layers
        ]
    return lines


def _preprocessing(spec: Any) -> str:
    if not isinstance(spec, Mapping):
        return "not recorded"
    shown = {key: spec[key] for key in ("mode", "channel_order", "mean", "scale") if key in spec}
    for key in ("mean", "scale"):
        if isinstance(shown.get(key), list) and all(isinstance(value, (int, float)) for value in shown[key]):
            shown[key] = "/".join(f"{value:.6g}" for value in shown[key])
    return f"in the engine: {', '.join(f'{key} {value}' for key, value in shown.items())}"


def _options(options: Mapping[str, Any]) -> str:
    """Return the options that are not TensorRT's defaults."""
    changed = (
        f"{key} {value}"
        for key, value in options.items()
        if value not in (None, False, "none", []) and key not in ("flags", "strongly_typed")
    )
    return ", ".join(changed) or "defaults"


def _found(sidecar: Sidecar) -> str:
    text = _counts(sidecar.found)
    if sidecar.found is None or not text:
        return f"unknown: {sidecar.layers_reason}"
    if outputs := sidecar.found.int8_outputs:
        text += f"; {outputs.get('int8', 0)} of {count(sum(outputs.values()), 'INT8 convolution')} writing INT8"
    return f"{text} (as its builder listed them; {sidecar.layers_reason})" if sidecar.layers_reason else text


def _counts(side: RequestedLayers | EngineLayers | None) -> str:
    if side is None or not side.convolutions:
        return ""
    text = "convolutions: " + ", ".join(f"{number} {kind}" for kind, number in side.convolutions.items())
    if isinstance(side, EngineLayers) and side.reformats:
        return f"{text}; layers that only change a format: {len(side.reformats)}"
    return text
