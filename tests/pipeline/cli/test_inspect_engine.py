"""``python -m pipeline engine``: real plans of TensorRT-RTX, and sidecars as a GPU machine writes them."""

import json
import shlex
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.tensorrt.build import build_engine
from export.tensorrt.driver import Device, DriverStatus
from export.tensorrt.library import TensorRT, find_tensorrt
from export.tensorrt.options import BuildOptions
from export.tensorrt.sidecar import SCHEMA, BatchProfile, sha256_file, write_plan
from pipeline.artifacts.manifest import Key, write_manifest
from pipeline.cli import inspect_engine
from pipeline.cli.commands import main
from pipeline.cli.inspect_engine import rebuild_command
from pipeline.recipe.load import load_recipe
from pipeline.workflow import environment
from tests import tiny_onnx
from tests.fakes.engine import make_sidecar
from tests.made_records import make_hop, write_verdict

HERE = DriverStatus(True, "", "580.95", "13.0", (Device("Fake GPU", "8.9", 1 << 30),))
HOPPER = DriverStatus(True, "", "580.95", "13.0", (Device("Fake Hopper", "9.0", 1 << 30),))
NO_GPU = DriverStatus(False, "no NVIDIA driver")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``artifacts/toy`` in a working directory with its recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.yaml").write_text("data: {path: images}\n")
    folder = Path("artifacts") / "toy"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def real(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan that TensorRT-RTX built."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has no wheel for this platform")
    trt = find_tensorrt("rtx")
    assert trt is not None
    (root / "quantize").mkdir()
    source = tiny_onnx.write(root / "quantize" / "model.fp16.onnx", "fp16")
    plan = root / "build" / "rtx" / "fp16-latency.plan"
    options = BuildOptions(workspace_mib=64)
    profile = BatchProfile(1, 1, 1)
    build_engine(source, plan, precision="fp16", profile=profile, trt=trt, options=options, variant="latency")
    return plan


def classic(root: Path, **changes: Any) -> Path:
    """A plan as TensorRT 10.13 on a GPU leaves it; nothing loads it."""
    plan = root / "build" / "tensorrt" / "int8.plan"
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_bytes(b"plan")
    found = {
        "count": 3,
        "convolutions": {"int8": 1, "fp16": 1},
        "int8_outputs": {"fp32": 1},
        "reformats": ["copy"],
        "layers": [
            {"name": "a/Conv + a_relu/Relu", "layers": ["a", "a_relu"], "kind": "CaskConvolution", "precision": "int8"}
        ],
    }
    sidecar = {
        "schema": SCHEMA,
        "flavour": "tensorrt",
        "tensorrt_version": "10.13.0",
        "compute_capability": "8.9",
        "targets": [],
        "runs_on": "compute capability 8.9",
        "gpu": "NVIDIA L4",
        "driver_version": "580.95",
        "cuda_version": "13.0",
        "precision": "int8",
        "variant": None,
        "onnx_file": "quantize/model.int8.onnx",
        "onnx_sha256": "0" * 64,
        "plan_sha256": sha256_file(plan),
        "plan_bytes": 4,
        "profile": {"min": 1, "opt": 8, "max": 32},
        "tensors": [],
        "options": {"tf32": False, "hardware_compatibility": "none", "flags": []},
        "asked": {"precision": "int8", "convolutions": {"int8": 2}, "layers": {}},
        "found": found,
        "warnings": ["1 of 2 convolutions do not run in INT8: b (fp16)"],
        **changes,
    }
    write_plan(plan, b"plan", make_sidecar(**(sidecar | {"schema": SCHEMA})))
    if sidecar["schema"] != SCHEMA:
        written = json.loads(plan.with_suffix(".json").read_text())
        plan.with_suffix(".json").write_text(json.dumps(written | {"schema": sidecar["schema"]}))
    return plan


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, version: str = "10.13.0", status: DriverStatus = HERE) -> None:
    monkeypatch.setattr(inspect_engine, "driver_status", lambda: status)
    monkeypatch.setattr(inspect_engine, "find_tensorrt", lambda flavour: TensorRT(None, flavour, version))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["engine", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_inspect_a_real_plan(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "inspect", str(real), "--json")
    assert status == 0
    *human, last = out.strip().splitlines()
    text = "\n".join(human)
    for words in (
        "fp16, variant latency",
        "TensorRT       rtx ",
        "a machine without a GPU",
        "min 1, opt 1, max 1",
        "images uint8 [-1, 16, 16, 3]",
        "logits float32 [-1, 4]; probabilities float32 [-1, 4]",
        "4: cat, dog, owl, emu",
        "mode unit, channel_order RGB, mean 0/0/0, scale 0.00392157/",
        "options        workspace_mib 64",
        "quantize/model.fp16.onnx",
        "verdict        not verified",
        "asked          convolutions: 1 fp16",
        "found          convolutions: 1 fp16 (as its builder listed them; the engine was not loaded here: ",
    ):
        assert words in text, words
    result = json.loads(last)
    assert (result["command"], result["intact"], result["exit"]) == ("engine", True, 0)
    assert result["engine"] == json.loads(real.with_suffix(".json").read_text())


def test_inspect_shows_what_was_found_and_the_warnings(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = classic(root)
    write_verdict(root, make_hop("build/tensorrt/int8.plan"))
    status, out, _ = run(capsys, "inspect", str(plan))
    assert status == 0
    for words in (
        "NVIDIA L4, driver 580.95, CUDA 13.0",
        "verdict        pass",
        "options        defaults",
        "asked          convolutions: 2 int8",
        "found          convolutions: 1 int8, 1 fp16; layers that only change a format: 1",
        "change a format: 1; 0 of 1 INT8 convolution writing INT8",
        "warning        1 of 2 convolutions do not run in INT8: b (fp16)",
        "int8     CaskConvolution        a, a_relu                      a/Conv + a_relu/Relu",
    ):
        assert words in out, words


def test_inspect_says_that_a_plan_was_altered(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real.write_bytes(real.read_bytes()[:-1] + b"?")
    status, out, _ = run(capsys, "inspect", str(real), "--json")
    assert status == 1
    assert "warning        The engine" in out
    result = json.loads(out.strip().splitlines()[-1])
    assert result["intact"] is False
    assert "the plan is not the one that was built" in result["reason"]


def test_an_engine_that_fits(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_a_gpu(monkeypatch)
    status, out, _ = run(capsys, "check", str(classic(root)), "--json")
    assert status == 0
    assert "fits this machine: Fake GPU, compute capability 8.9" in out
    result = json.loads(out.strip().splitlines()[-1])
    assert (result["fits"], result["reason"], result["rebuild"]) == (True, "", None)


@pytest.mark.parametrize(
    ("changes", "version", "words"),
    [
        ({}, "10.16.1", "Expected TensorRT 10.13.0, which built it. Received: TensorRT 10.16.1 here"),
        ({"compute_capability": "9.0"}, "10.13.0", "compute capability 9.0, where it was built. Received: 8.9 here"),
        ({"cuda_version": "14.1"}, "10.13.0", "a driver for CUDA 14, as it was built with (CUDA 14.1). Received: a "),
    ],
)
def test_what_does_not_fit_says_both_sides_and_the_command(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    version: str,
    words: str,
) -> None:
    on_a_gpu(monkeypatch, version)
    status, out, _ = run(capsys, "check", str(classic(root, **changes)), "--json")
    *human, last = out.strip().splitlines()
    result = json.loads(last)
    assert status == result["exit"] == 1
    assert words in "\n".join(human)
    assert human[-1].endswith("-m pipeline build -c configs/toy.yaml --force")
    assert human[-1].strip() == result["rebuild"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan_bytes": 5}, "Expected 5 bytes. Received: 4 bytes: truncated"),
        ({"plan_sha256": "1" * 64}, "the plan is not the one that was built"),
        ({"schema": 1}, "schema 2 in "),
    ],
)
def test_what_is_damaged_is_bad_input_not_another_machine(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    on_a_gpu(monkeypatch)
    status, _, err = run(capsys, "check", str(classic(root, **changes)))
    assert status == 2
    assert words in err
    assert "-m pipeline build -c configs/toy.yaml --force" in err


def test_a_sidecar_does_not_talk_to_the_terminal(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "inspect", str(classic(root, gpu="\x1b[31mred\r")))
    assert "?[31mred?" in out
    assert "\x1b" not in out


def test_without_a_gpu_rebuilding_is_no_help(
    real: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect_engine, "driver_status", lambda: NO_GPU)
    status, out, _ = run(capsys, "check", str(real), "--json")
    assert status == 1
    assert "Expected an NVIDIA GPU: compute capability 8.0 and later" in out
    assert "Received: no NVIDIA driver" in out
    assert json.loads(out.strip().splitlines()[-1])["rebuild"] is None


def test_a_library_that_is_not_here(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect_engine, "driver_status", lambda: HERE)
    monkeypatch.setattr(inspect_engine, "find_tensorrt", lambda flavour: None)
    monkeypatch.setattr(inspect_engine, "why_missing", lambda: {"tensorrt": "tensorrt is not installed"})
    status, out, _ = run(capsys, "check", str(classic(root)))
    assert status == 1
    assert "TensorRT tensorrt 10.13.0, which built it. Received: tensorrt is not installed" in out


def test_another_target_is_built_besides(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings that built it would build the same again."""
    on_a_gpu(monkeypatch, "1.7.1")
    plan = classic(root, flavour="rtx", tensorrt_version="1.7.1", compute_capability=None, targets=["8.6"])
    status, out, _ = run(capsys, "check", str(plan), "--json")
    *human, last = out.strip().splitlines()
    assert status == 1
    assert "a GPU of compute capability 8.6. Received: 8.9 here" in "\n".join(human)
    assert json.loads(last)["rebuild"] == human[-1].strip()
    assert shlex.split(human[-1])[-2:] == ["--set", 'build.targets=["8.6", "8.9"]']


@pytest.mark.parametrize("rtx_is_here", [True, False])
@pytest.mark.parametrize("classic_is_here", [True, False])
@pytest.mark.parametrize("built", ["1.7.1", "1.6.0"])
def test_rtx_on_a_gpu_that_it_does_not_support(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rtx_is_here: bool,
    classic_is_here: bool,
    built: str,
) -> None:
    """Building it again as it was built would not help, nor would installing what built it."""
    here = {"rtx": "1.7.1"} if rtx_is_here else {}
    here |= {"tensorrt": "10.13.0"} if classic_is_here else {}

    def find(flavour: str) -> TensorRT | None:
        module = SimpleNamespace(IBuilderConfig=object)
        return TensorRT(module, flavour, here[flavour]) if flavour in here else None

    for module in (inspect_engine, environment):
        monkeypatch.setattr(module, "driver_status", lambda: HOPPER)
        monkeypatch.setattr(module, "find_tensorrt", find)
    plan = classic(root, flavour="rtx", tensorrt_version=built, compute_capability=None)
    status, out, _ = run(capsys, "check", str(plan), "--json")
    *human, last = out.strip().splitlines()
    text, result = "\n".join(human), json.loads(last)
    assert status == result["exit"] == 1
    assert "TensorRT-RTX does not support this GPU; build with TensorRT. " in text
    assert "Received: compute capability 9.0 here." in text
    assert "pip install" not in text
    command = human[-1].strip()
    assert shlex.split(command)[-3:] == ["--force", "--set", 'build.flavour="tensorrt"']
    assert result["rebuild"] == (command if classic_is_here else None)


@pytest.mark.parametrize("action", ["inspect", "check"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.onnx", "an ONNX file, which runs on ONNX Runtime. Engines are built from it:"),
        ("other.json", "other.json, which is none"),
        ("build/tensorrt/int8.json", "int8.json, the sidecar of an engine. Name the engine: artifacts/toy/build"),
        ("model.keras", "`python -m pipeline inspect` describes it"),
        ("model.engine", "an engine of another program"),
        ("picture.png", "picture.png, which is none"),
        ("build/tensorrt", "a folder that holds artifacts/toy/build/tensorrt/int8.plan. Name one of them."),
        ("build/tensorrt/int4.plan", "does not exist. In artifacts/toy/build/tensorrt there are: int8.plan."),
        ("nowhere/int4.plan", "nowhere/int4.plan, which does not exist. This builds one:\n  "),
        ("x/tensorrt/a.plan", "TensorRT builds one, on a GPU machine:\n  "),
        ("x/tensorrt/a.plan", "--set 'build.flavour=\"tensorrt\"'"),
        ("build/rtx/int4.plan", "TensorRT-RTX builds one:\n  "),
    ],
)
def test_what_is_no_engine_is_said_to_be_something_else(
    root: Path, capsys: pytest.CaptureFixture[str], action: str, name: str, words: str
) -> None:
    classic(root)
    for other in ("model.onnx", "model.keras", "model.engine", "picture.png", "other.json"):
        (root / other).write_bytes(b"x")
    status, _, err = run(capsys, action, str(root / name))
    assert status == 2
    assert words in err
    assert "Expected the sidecar" not in err
    assert err.count("Expected ") == 1


def test_a_plan_without_a_sidecar(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = classic(root)
    plan.with_suffix(".json").unlink()
    status, _, err = run(capsys, "inspect", str(plan))
    assert status == 2
    assert "Expected the sidecar" in err
    assert "Copy it along: it lies beside the plan where that was built. Or rebuild it:" in err
    assert "-c configs/toy.yaml --force" in err
    status, _, err = run(capsys, "check", str(plan))
    assert status == 2
    assert "Expected the sidecar" in err


# --- the command that rebuilds ---


def words(plan: Path) -> list[str]:
    return shlex.split(rebuild_command(plan))


def test_the_command_repeats_what_was_overridden(root: Path) -> None:
    plan = classic(root)
    built = {"tf32": True, "variants": {"one": {"min": 1, "opt": 1, "max": 1}}, "workspace_mib": None}
    write_manifest(
        root / "build", stage="build", recipe="toy", key=Key({}, {"build": built}, "", {}), seconds=1.0, result={}
    )
    made = words(plan)
    overrides = [value for flag, value in pairwise(made) if flag == "--set"]
    again = load_recipe(Path("configs/toy.yaml"), overrides).build
    assert again.tf32
    assert again.variants["one"].max == 1
    assert len(overrides) == 2


def test_the_command_takes_another_flavour_than_was_overridden(root: Path) -> None:
    plan = classic(root)
    built = {"flavour": "rtx", "tf32": True}
    write_manifest(
        root / "build", stage="build", recipe="toy", key=Key({}, {"build": built}, "", {}), seconds=1.0, result={}
    )
    made = shlex.split(rebuild_command(plan, {"flavour": "tensorrt"}))
    overrides = [value for flag, value in pairwise(made) if flag == "--set"]
    again = load_recipe(Path("configs/toy.yaml"), overrides).build
    assert (again.flavour, again.tf32) == ("tensorrt", True)
    assert len(overrides) == 2
    assert shlex.split(rebuild_command(Path("loose.plan"), {"flavour": "tensorrt"}))[-1] == 'build.flavour="tensorrt"'


def test_the_command_finds_the_recipe_of_an_unpacked_bundle(root: Path) -> None:
    plan = classic(root)
    Path("configs/toy.yaml").unlink()
    assert words(plan)[5] == "RECIPE"
    (root / "recipe.yaml").write_text("name: toy\ndata: {path: images}\n")
    assert words(plan)[5] == "artifacts/toy/recipe.yaml"


def test_other_folders(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "there"
    assert words(classic(elsewhere / "toy"))[-2:] == ["--artifacts", "there"]
    assert words(tmp_path / "loose.plan")[-3:] == ["-c", "RECIPE", "--force"]
