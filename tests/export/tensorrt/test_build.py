import enum
import errno
import inspect
import json
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.errors import ProjectError
from export.from_keras.convert import export_keras
from export.records import to_json
from export.tensorrt import build as engine
from export.tensorrt import driver, network, sidecar
from export.tensorrt.build import EngineDeviceError, build_engine
from export.tensorrt.compatibility import check_engine
from export.tensorrt.library import TensorRT, find_tensorrt, why_missing
from export.tensorrt.network import configure, make_monitor, network_flags
from export.tensorrt.options import BuildOptions
from export.tensorrt.sidecar import BatchProfile, artifacts_folder, read_sidecar, sha256_file, sidecar_path
from tests import tiny_onnx
from tests.fakes.engine import make_sidecar
from tests.fakes.gpu import FakeDriver

PROFILE = BatchProfile(1, 4, 16)


@pytest.fixture
def rtx() -> TensorRT:
    found = find_tensorrt("rtx")
    if found is None:
        pytest.skip(why_missing()["rtx"])
    return found


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Any:
        raise OSError("libcuda.so.1: no such file")

    monkeypatch.setattr(driver, "_load_cuda", load)


def build(tmp_path: Path, trt: TensorRT, precision: str = "fp32", **options: Any) -> dict[str, Any]:
    source = options.pop("source", None) or tiny_onnx.write(tmp_path / f"{precision}.onnx", precision)
    plan = tmp_path / "build" / f"{precision}.plan"
    given = {name: options.pop(name) for name in ("progress", "extra", "profile", "variant") if name in options}
    given = {"profile": PROFILE, **given, "options": BuildOptions(**options)}
    return to_json(build_engine(source, plan, precision=precision, trt=trt, **given))


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 4), (1, 8, 4), (1.0, 2, 3), (True, 2, 3)])
def test_profile_refuses(sizes: tuple[Any, ...]) -> None:
    with pytest.raises(ProjectError, match="1 <= min <= opt <= max"):
        BatchProfile(*sizes)


@pytest.mark.parametrize(
    ("plan", "home"),
    [("/a/build/rtx/fp16.plan", "/a"), ("/tmp/plans/fp16.plan", "/"), ("/plans/fp16.plan", "/"), ("/fp16.plan", "/")],
)
def test_a_plan_may_lie_right_below_the_root(plan: str, home: str) -> None:
    assert artifacts_folder(Path(plan)) == Path(home)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_builds_a_plan_and_says_what_it_is(tmp_path: Path, rtx: TensorRT, no_driver: None, precision: str) -> None:
    made = build(tmp_path, rtx, precision)
    plan = tmp_path / "build" / f"{precision}.plan"
    assert left(plan.parent) == [f"{precision}.json", f"{precision}.plan"]
    assert made == to_json(read_sidecar(plan)) == json.loads(sidecar_path(plan).read_text())
    assert made["plan_sha256"] == sha256_file(plan)
    assert made["plan_bytes"] == plan.stat().st_size > 10_000
    assert made["onnx_sha256"] == sha256_file(tmp_path / f"{precision}.onnx")
    assert (made["flavour"], made["tensorrt_version"]) == ("rtx", rtx.version)
    assert made["precision"] == precision
    assert made["profile"] == {"min": 1, "opt": 4, "max": 16}
    images, logits, probabilities = made["tensors"]
    assert images == {
        "name": "images",
        "mode": "input",
        "dtype": "uint8",
        "shape": [-1, 16, 16, 3],
        "profile": {"min": [1, 16, 16, 3], "opt": [4, 16, 16, 3], "max": [16, 16, 16, 3]},
    }
    assert logits == {"name": "logits", "mode": "output", "dtype": "float32", "shape": [-1, 4], "profile": None}
    assert probabilities["name"] == "probabilities"
    assert made["classes"] == list(tiny_onnx.CLASSES)
    assert made["preprocessing"] == tiny_onnx.SPEC
    assert made["network_layers"]["CONVOLUTION"] == 1
    assert made["network_layers"].get("QUANTIZE", 0) == (2 if precision == "int8" else 0)
    assert made["options"]["tf32"] is False
    assert made["options"]["flags"] == ["REQUIRE_USER_ALLOCATION"]
    # Built without a GPU: nothing is said about one.
    assert [made[key] for key in ("gpu", "driver_version", "compute_capability")] == [None] * 3
    assert made["found"]["convolutions"] == {precision: 1}, "as the builder lists it"
    assert made["warnings"] == []
    assert made["variant"] is None
    assert plan.parents[2] / made["onnx_file"] == tmp_path / f"{precision}.onnx"
    asked = {"convolutions": {precision: 1}, "layers": {"conv": precision}, "activations": {"conv": "relu"}}
    assert made["asked"] == {"precision": precision, **asked}
    assert "libcuda.so.1" in made["layers_reason"]
    assert made["targets"] == []
    assert made["runs_on"].startswith("compute capability 8.0 and later")


@pytest.mark.parametrize(
    ("asked", "recorded"),
    [
        (("SM80",), ["8.0"]),
        (("8.6", "sm89", "12.0"), ["8.6", "8.9", "12.0"]),
        (("SM86", "8.6"), ["8.6"]),
    ],
)
def test_targets(tmp_path: Path, rtx: TensorRT, no_driver: None, asked: tuple[str, ...], recorded: list[str]) -> None:
    made = build(tmp_path, rtx, "fp16", targets=asked)
    assert made["targets"] == recorded
    plan = tmp_path / "build" / "fp16.plan"
    assert to_json(check_engine(plan, rtx, recorded[-1])) == made
    with pytest.raises(ProjectError, match=r"compute capability 8\..*Received: 7\.5 here"):
        check_engine(plan, rtx, "7.5")


def test_a_target_that_does_not_exist_names_those_that_do(tmp_path: Path, rtx: TensorRT) -> None:
    with pytest.raises(
        ProjectError, match=r"targets of .*SM80, SM86.* or current\. Received: '3\.5'.*build with TensorRT"
    ):
        build(tmp_path, rtx, targets=("3.5",))


def test_the_current_gpu_needs_one(tmp_path: Path, rtx: TensorRT, no_driver: None) -> None:
    with pytest.raises(EngineDeviceError, match=r"current GPU.*libcuda\.so\.1"):
        build(tmp_path, rtx, targets=("current",))


def test_options_reach_the_builder(tmp_path: Path, rtx: TensorRT, no_driver: None) -> None:
    plain = build(tmp_path, rtx)
    tuned = build(
        tmp_path, rtx, tf32=True, workspace_mib=64, optimization_level=2, max_aux_streams=1, builder_threads=2
    )
    assert tuned["options"] == {
        "tf32": True,
        "workspace_mib": 64,
        "optimization_level": 2,
        "version_compatible": False,
        "hardware_compatibility": "none",
        "strip_weights": False,
        "max_aux_streams": 1,
        "builder_threads": 2,
        "timing_cache": None,
        "strongly_typed": True,
        "flags": ["TF32", "REQUIRE_USER_ALLOCATION"],
    }
    assert tuned["plan_sha256"] != plain["plan_sha256"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("targets", "sizes"), [((), (4, 4, 4)), (("SM80", "SM120"), (1, 1, 1)), (("SM86",), (2, 3, 5))]
)
def test_static_and_dynamic_batches_for_several_targets(
    tmp_path: Path, rtx: TensorRT, no_driver: None, precision: str, targets: tuple[str, ...], sizes: tuple[int, ...]
) -> None:
    profile = BatchProfile(*sizes)
    made = build(tmp_path, rtx, precision, targets=targets, profile=profile, variant="some")
    assert list(made["profile"].values()) == list(sizes)
    assert made["variant"] == "some"
    assert made["tensors"][0]["shape"][0] == -1
    assert made["tensors"][0]["profile"]["max"] == [sizes[2], 16, 16, 3]
    plan = tmp_path / "build" / f"{precision}.plan"
    assert to_json(check_engine(plan, rtx, "8.0" if "SM80" in targets else "8.6" if targets else "8.9")) == made


def test_extra_wins_over_the_onnx_metadata(tmp_path: Path, rtx: TensorRT, no_driver: None) -> None:
    made = build(tmp_path, rtx, extra={"classes": ["a", "b", "c", "d"], "recipe": "digits"})
    assert made["classes"] == ["a", "b", "c", "d"]
    assert made["preprocessing"] == tiny_onnx.SPEC
    assert made["metadata"] == {"recipe": "digits"}


def test_progress_is_told_and_complete(tmp_path: Path, rtx: TensorRT, no_driver: None) -> None:
    told: list[tuple[str, int, int]] = []
    build(tmp_path, rtx, progress=lambda *step: told.append(step))
    phases = {phase: (done, steps) for phase, done, steps in told}
    assert len(phases) > 3
    assert all(done == steps for done, steps in phases.values())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupt_stops_the_build_and_leaves_nothing(
    tmp_path: Path, rtx: TensorRT, no_driver: None, error: type[BaseException]
) -> None:
    calls = []

    def progress(*step: Any) -> None:
        calls.append(step)
        if len(calls) == 5:
            raise error

    with pytest.raises(error):
        build(tmp_path, rtx, progress=progress)
    assert len(calls) == 5
    assert left(tmp_path / "build") == []


def damaged(kind: str, path: Path) -> Path:
    model = tiny_onnx.classifier()
    content = model.SerializeToString()
    if kind == "truncated":
        content = content[: len(content) // 2]
    if kind == "empty":
        content = b""
    if kind == "unknown operator":
        model.graph.node[3].op_type, model.graph.node[3].domain = "FancyRelu", "my.ops"
        model.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
        content = model.SerializeToString()
    if kind == "float input":
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        content = model.SerializeToString()
    if kind == "fixed batch":
        content = tiny_onnx.classifier(batch=4).SerializeToString()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "does not parse: damaged or cut short"),
        ("empty", "does not parse: cannot mmap an empty file"),
        ("unknown operator", r"Plugin not found.*node 3: relu, FancyRelu"),
        ("float input", r"images float32 \[-1, 16, 16, 3\]"),
        ("fixed batch", r"\[4, 16, 16, 3\]"),
    ],
)
def test_damaged_onnx_is_refused_in_tensorrts_words(
    tmp_path: Path, rtx: TensorRT, no_driver: None, kind: str, words: str
) -> None:
    with pytest.raises(ProjectError, match=f"(?s)Expected .*Received: .*{words}"):
        build(tmp_path, rtx, source=damaged(kind, tmp_path / "bad.onnx"))
    assert left(tmp_path / "build") == []


def test_a_failed_build_carries_the_loggers_lines(tmp_path: Path, rtx: TensorRT, no_driver: None) -> None:
    with pytest.raises(ProjectError, match=r"SM75.*FP32 GEMM is not supported"):
        build(tmp_path, rtx, targets=("7.5",))
    assert left(tmp_path / "build") == []


@pytest.mark.parametrize(
    ("holds", "asked"),
    [("fp32", "fp16"), ("fp32", "int8"), ("fp16", "fp32"), ("fp16", "int8"), ("int8", "fp32"), ("int8", "fp16")],
)
def test_a_graph_of_another_precision_is_refused(
    tmp_path: Path, rtx: TensorRT, no_driver: None, holds: str, asked: str
) -> None:
    source = tiny_onnx.write(tmp_path / "model.onnx", holds)
    with pytest.raises(ProjectError, match=f"for precision {asked}.*quantize stage"):
        build(tmp_path, rtx, asked, source=source)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "bf16"}, "'bf16'"),
        ({"plan_path": "x.json"}, "sidecar's name"),
        ({"onnx_path": "gone.onnx"}, "gone.onnx. Received: no such file"),
    ],
)
def test_a_wrong_request_is_refused_at_once(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    source = tiny_onnx.write(tmp_path / "model.onnx")
    given = {"onnx_path": source, "plan_path": tmp_path / "x.plan", "precision": "fp32", **options}
    untouched = TensorRT(types.SimpleNamespace(), "rtx", "?")
    with pytest.raises(ProjectError, match=words):
        build_engine(given.pop("onnx_path"), given.pop("plan_path"), profile=PROFILE, trt=untouched, **given)


def disk_full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_engine(
    tmp_path: Path, rtx: TensorRT, no_driver: None, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    old = build(tmp_path, rtx)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, disk_full)
        with pytest.raises(ProjectError, match=r"No space left on device.*Free space"):
            build(tmp_path, rtx, tf32=True)
    assert left(tmp_path / "build") == ["fp32.json", "fp32.plan"]
    assert to_json(check_engine(tmp_path / "build" / "fp32.plan", rtx)) == old


def test_a_plan_never_stays_without_its_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def second_fails(source: Any, target: Any) -> None:
        if str(target).endswith(".json"):
            disk_full()
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(ProjectError, match="No space left"):
        sidecar.write_plan(tmp_path / "x.plan", b"plan", make_sidecar())
    assert left(tmp_path) == []


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan of a TensorRT 10.13 for a GPU of compute capability 8.9, which nobody needs to run."""
    path = tmp_path / "fp16.plan"
    path.write_bytes(b"plan" * 1000)
    content = to_json(make_sidecar(plan_sha256=sha256_file(path), plan_bytes=4000))
    sidecar_path(path).write_text(json.dumps(content))
    return path


def library(flavour: str = "tensorrt", version: str = "10.13.0") -> TensorRT:
    return TensorRT(types.SimpleNamespace(), flavour, version)


def change(**values: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = json.loads(sidecar_path(path).read_text())
        for key, value in values.items():
            content.pop(key) if value is None else content.update({key: value})
        sidecar_path(path).write_text(json.dumps(content))

    return edit


def test_the_right_engine_is_taken(plan: Path) -> None:
    assert check_engine(plan, library(), "8.9").precision == "fp16"
    assert check_engine(plan, library()).compute_capability == "8.9"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"plaN" * 1000), "sha256 [0-9a-f]{64}.*Received: sha256 [0-9a-f]{64}"),
        (lambda path: path.write_bytes(b"plan" * 500), "4,000 bytes. Received: 2,000 bytes: truncated"),
        (lambda path: path.unlink(), "which does not exist. This builds one"),
        (lambda path: sidecar_path(path).unlink(), "sidecar .*fp16.json.* Received: No such file"),
        (lambda path: sidecar_path(path).write_text("{"), "Expected JSON in .*fp16.json"),
        (lambda path: sidecar_path(path).write_text("[]"), "schema 2 .*Received: a list"),
        (change(schema=1), "schema 2 .*Received: schema 1"),
        (change(plan_sha256=None), "'plan_sha256' of type text .*Received: nothing"),
        (change(plan_bytes="4000"), "'plan_bytes' of type a whole number .*Received: '4000'"),
        (change(profile={"min": 1}), "'profile.opt' of type a whole number in .*fp16.json.*Received: nothing"),
        (change(profile={"min": 2, "opt": 1, "max": 4}), "1 <= min <= opt <= max"),
    ],
)
def test_altered_plans_and_sidecars_are_refused(plan: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(plan)
    with pytest.raises(ProjectError, match=f"{words}.*python -m pipeline build -c RECIPE --force"):
        check_engine(plan, library(), "8.9")


@pytest.mark.parametrize(
    ("trt", "capability", "words"),
    [
        (library("rtx"), "8.9", "flavour tensorrt, which built it. Received: flavour rtx here"),
        (library(version="10.16.1"), "8.9", r"TensorRT 10\.13\.0, which built it. Received: TensorRT 10\.16\.1 here"),
        (library(), "9.0", r"compute capability 8\.9, where it was built. Received: 9\.0 here"),
    ],
)
def test_an_engine_for_something_else_is_refused(plan: Path, trt: TensorRT, capability: str, words: str) -> None:
    with pytest.raises(ProjectError, match=f"{words}.*--force"):
        check_engine(plan, trt, capability)


@pytest.mark.parametrize(
    ("built", "here", "taken"),
    [
        ("10.13.0", "10.13.0", True),
        ("10.13.0", "10.13.2", True),
        ("10.13.0", "10.16.1", True),
        ("10.9.0", "10.13.0", True),
        ("10.13.0", "11.4.0", True),
        ("8.6.0", "10.13.0", True),
        ("8.6.0", "11.0.0", False),
        ("10.13.0", "10.12.0", False),
        ("11.4.0", "10.16.1", False),
        ("10.13.0", "12.0.0", False),
        ("unknown", "10.13.0", False),
    ],
)
def test_version_compatible_plans_run_on_later_versions(plan: Path, built: str, here: str, taken: bool) -> None:
    change(tensorrt_version=built, options={"version_compatible": True})(plan)
    if taken:
        assert check_engine(plan, library(version=here), "8.9").tensorrt_version == built
        return
    with pytest.raises(ProjectError, match=f"TensorRT {built}, which built it as version-compatible.*TensorRT {here}"):
        check_engine(plan, library(version=here), "8.9")


@pytest.mark.parametrize(
    ("level", "here", "taken"),
    [
        ("ampere_plus", "8.0", True),
        ("ampere_plus", "8.9", True),
        ("ampere_plus", "12.0", True),
        ("ampere_plus", "7.5", False),
        ("same_compute_capability", "8.9", True),
        ("same_compute_capability", "8.6", False),
        ("none", "8.6", False),
    ],
)
def test_hardware_compatible_plans_run_on_other_gpus(plan: Path, level: str, here: str, taken: bool) -> None:
    change(options={"hardware_compatibility": level})(plan)
    if taken:
        assert check_engine(plan, library(), here)
        return
    with pytest.raises(ProjectError, match=rf"a GPU of compute capability 8\.\d.*Received: {here} here"):
        check_engine(plan, library(), here)


@pytest.mark.parametrize(
    ("built", "here", "taken"),
    [("12.8", "12.4", True), ("12.8", "13.0", True), ("13.1", "13.0", True), ("13.0", "12.9", False), ("", "11", True)],
)
def test_a_driver_for_an_older_cuda_is_told_both_sides(plan: Path, built: str, here: str, taken: bool) -> None:
    change(cuda_version=built or None)(plan) if built else None
    if taken:
        assert check_engine(plan, library(), "8.9", here)
        return
    with pytest.raises(
        ProjectError, match=r"driver for CUDA 13, .*CUDA 13\.0\)\. Received: a driver that runs CUDA 12\.9"
    ):
        check_engine(plan, library(), "8.9", here)


def test_rtx_for_its_default_targets_needs_ampere(tmp_path: Path, rtx: TensorRT, no_driver: None) -> None:
    made = build(tmp_path, rtx)
    plan = tmp_path / "build" / "fp32.plan"
    assert to_json(check_engine(plan, rtx, "8.6")) == made
    with pytest.raises(ProjectError, match=r"compute capability 8\.0 or later. Received: 7\.5 here"):
        check_engine(plan, rtx, "7.5")


class Config:
    """Records what is set; has the methods that every version has."""

    takes_sources = True

    def __init__(self) -> None:
        self.on = {"TF32"}
        self.sources, self.preview = None, {}

    def set_flag(self, flag: Any) -> None:
        self.on.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.on.discard(flag.name)

    def set_tactic_sources(self, sources: int) -> bool:
        if self.takes_sources:
            self.sources = sources
        return self.takes_sources

    def set_preview_feature(self, feature: Any, on: bool) -> None:
        self.preview[feature.name] = on


# What 8.6 has to be asked for and later versions do anyway.
PREVIEW = ("DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805", "PROFILE_SHARING_0806")


def version(major: int) -> TensorRT:
    """The names that a version has, as far as the choice of flags goes, with that version's numbers."""
    names: dict[str, dict[str, int]] = {
        "ProfilingVerbosity": {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2},
        "TacticSource": {"EDGE_MASK_CONVOLUTIONS": 3, "JIT_CONVOLUTIONS": 4},
        "NetworkDefinitionCreationFlag": {
            8: {"EXPLICIT_BATCH": 0},
            10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
            11: {"STRONGLY_TYPED": 0},
        }[major],
        "BuilderFlag": {"TF32": 2} if major == 11 else {"FP16": 0, "INT8": 1, "TF32": 7},
        "PreviewFeature": {name: number for number, name in enumerate(PREVIEW)} if major == 8 else {"OTHER": 0},
    }
    enums = {name: enum.IntEnum(name, members) for name, members in names.items()}
    return TensorRT(types.SimpleNamespace(**enums, IBuilderConfig=Config, Builder=object), "tensorrt", f"{major}.x")


@pytest.mark.parametrize(
    ("major", "precision", "flags"),
    [
        (8, "fp32", []),
        (8, "fp16", ["FP16"]),
        (8, "int8", ["INT8", "FP16"]),
        (10, "fp16", []),
        (10, "int8", []),
        (11, "int8", []),
    ],
)
@pytest.mark.parametrize("tf32", [False, True])
def test_precision_flags_only_where_typing_is_weak(major: int, precision: str, flags: list[str], tf32: bool) -> None:
    trt, config = version(major), Config()
    assert configure(trt, None, config, precision, BuildOptions(tf32=tf32), ()) == flags + ["TF32"] * tf32
    assert config.on == {*flags, *(["TF32"] * tf32)}
    assert config.profiling_verbosity.name == "DETAILED"  # type: ignore[attr-defined]
    assert (config.preview, config.sources) == ((dict.fromkeys(PREVIEW, True), 24) if major == 8 else ({}, None))


def test_tactic_sources_that_are_refused_are_an_error() -> None:
    config = Config()
    config.takes_sources = False
    with pytest.raises(ProjectError, match="it refuses the tactic sources 24"):
        configure(version(8), None, config, "fp32", BuildOptions(), ())


@pytest.mark.parametrize(("major", "bits"), [(8, 1), (10, 2), (11, 1)])
def test_the_network_flag_is_asked_by_name(major: int, bits: int) -> None:
    assert network_flags(version(major)) == bits


@pytest.mark.parametrize("major", [8, 10, 11])
def test_classic_tensorrt_is_not_touched_without_a_driver(tmp_path: Path, no_driver: None, major: int) -> None:
    # The fake has no Builder at all, so touching it would be an AttributeError.
    with pytest.raises(EngineDeviceError, match=r"tensorrt \d+\.x\. Received: no NVIDIA driver.*tensorrt-rtx"):
        build(tmp_path, version(major))
    assert left(tmp_path / "build") == []


def test_classic_tensorrt_takes_no_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "driver_status", lambda: driver._query(FakeDriver()))
    with pytest.raises(ProjectError, match=r"can do targets.*tensorrt 11\.x: it builds for the GPU of this machine"):
        build(tmp_path, version(11), targets=("8.6",))


def test_what_a_sidecar_says_about_the_machine(monkeypatch: pytest.MonkeyPatch, rtx: TensorRT) -> None:
    monkeypatch.setattr(driver, "_kernel_driver_version", lambda: "580.95.05")
    here = driver._query(FakeDriver())
    classic = engine._machine(version(10), here, [])
    assert (classic["compute_capability"], classic["gpu"]) == ("8.9", "Fake GPU")
    assert (classic["driver_version"], classic["cuda_version"]) == ("580.95.05", "13.1")
    portable = engine._machine(rtx, here, [])
    assert (portable["compute_capability"], portable["gpu"]) == (None, "Fake GPU")
    assert engine._targets(rtx, ["current"], here) == ["8.9"]


def test_the_monitor_cancels_after_an_error() -> None:
    base = type("IProgressMonitor", (), {})
    trt = TensorRT(types.SimpleNamespace(IProgressMonitor=base), "tensorrt", "?")

    def progress(phase: str, done: int, steps: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monitor = make_monitor(trt, progress, [])
    monitor.phase_start("tactics", None, 3)
    assert monitor.step_complete("tactics", 0)
    assert not monitor.step_complete("tactics", 1)
    assert not monitor.step_complete("tactics", 2)
    assert isinstance(monitor.error, KeyboardInterrupt)


def test_the_names_are_those_that_the_export_gives() -> None:
    given = inspect.signature(export_keras).parameters
    assert given["input_name"].default == network.INPUT
    assert (given["logits_name"].default, given["probabilities_name"].default) == network.OUTPUTS
    assert given["top_names"].default == sidecar.TOP_OUTPUTS


# --- the metadata of an ONNX file, read without the onnx package ---


def test_metadata_is_what_onnx_reads(tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "fp16.onnx", "fp16")
    model = onnx.load(path)
    for key, value in {"text": "no JSON", "number": "7", "empty": "", "umlaut": '{"ü": [1, 2]}'}.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    read = engine._onnx_metadata(path)
    assert read.keys() == {one.key for one in model.metadata_props}
    assert (read["text"], read["number"], read["empty"], read["umlaut"]) == ("no JSON", 7, "", {"ü": [1, 2]})
    assert read["classes"] == list(tiny_onnx.CLASSES)


def test_a_file_cut_short_in_its_metadata_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(tiny_onnx.write(tmp_path / "fp16.onnx", "fp16").read_bytes()[:-3])
    with pytest.raises(ProjectError, match="Expected an ONNX file"):
        engine._onnx_metadata(path)
