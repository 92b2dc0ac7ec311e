import enum
import logging
import types
from pathlib import Path
from typing import Any

import pytest

from export.errors import ProjectError
from export.tensorrt import build, driver, network, timing_cache
from export.tensorrt.build import EngineDeviceError, build_engine
from export.tensorrt.driver import Device, DriverStatus
from export.tensorrt.library import TensorRT, find_tensorrt, why_missing
from export.tensorrt.options import BuildOptions, refuse_unsupported
from export.tensorrt.sidecar import BatchProfile
from tests import tiny_onnx

NO_GPU = DriverStatus(False, "no NVIDIA driver")


def gpu(capability: str) -> DriverStatus:
    return DriverStatus(True, "", "580", "13.0", (Device("Fake GPU", capability, 1 << 30),))


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Config:
    """The builder's configuration as classic TensorRT has it; it records what is set."""

    max_aux_streams = -1
    profiling_verbosity = hardware_compatibility_level = None

    def __init__(self) -> None:
        self.on = {"TF32"}

    def set_flag(self, flag: Any) -> None:
        self.on.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.on.discard(flag.name)

    def create_timing_cache(self, data: bytes) -> Any: ...


def classic(major: int, config: type = Config) -> TensorRT:
    """The names that a version of classic TensorRT has, as far as these options go."""
    flags = ["TF32", "VERSION_COMPATIBLE"] + (["STRIP_PLAN", "REFIT_IDENTICAL"] if major > 8 else ["FP16", "INT8"])
    levels = ["NONE", "AMPERE_PLUS"] + (["SAME_COMPUTE_CAPABILITY"] if major > 8 else [])
    names = {
        "BuilderFlag": flags,
        "HardwareCompatibilityLevel": levels,
        "ProfilingVerbosity": ["DETAILED"],
        "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED" if major > 8 else "EXPLICIT_BATCH"],
    }
    enums = {name: enum.IntEnum(name, members, start=0) for name, members in names.items()}
    builder = type("Builder", (), {"max_threads": 1})
    logger = type("ILogger", (), {"Severity": Severity})
    module = types.SimpleNamespace(**enums, IBuilderConfig=config, Builder=builder, ILogger=logger)
    return TensorRT(module, "tensorrt", f"{major}.x")


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workspace_mib", 0),
        ("workspace_mib", 2.5),
        ("workspace_mib", True),
        ("optimization_level", 6),
        ("optimization_level", -1),
        ("max_aux_streams", -1),
        ("builder_threads", 0),
        ("tf32", 1),
        ("strip_weights", "yes"),
        ("hardware_compatibility", "ampere"),
        ("targets", "SM86"),
        ("targets", (8.6,)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ProjectError, match=f"Expected {name} .*Received: "):
        BuildOptions(**{name: value})


def test_a_folder_is_no_timing_cache(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="timing_cache to be a file"):
        BuildOptions(timing_cache=tmp_path)


def test_weights_cannot_come_back_into_a_version_compatible_plan() -> None:
    with pytest.raises(ProjectError, match=r"strip_weights or version_compatible\. Received: both"):
        BuildOptions(strip_weights=True, version_compatible=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version_compatible": True}, "version_compatible. Received: rtx .*on the GPU machine"),
        ({"hardware_compatibility": "ampere_plus"}, "hardware_compatibility: ampere_plus. Received: rtx .*targets"),
        ({"strip_weights": True}, "an NVIDIA GPU to build with strip_weights by rtx .*libcuda"),
    ],
)
def test_what_rtx_cannot_do_is_refused_by_name(
    tmp_path: Path, rtx: TensorRT, no_driver: None, options: dict[str, Any], words: str
) -> None:
    source = tiny_onnx.write(tmp_path / "fp32.onnx")
    with pytest.raises(ProjectError, match=words):
        build_engine(
            source,
            tmp_path / "fp32.plan",
            precision="fp32",
            profile=BatchProfile(1, 8, 32),
            trt=rtx,
            options=BuildOptions(**options),
        )
    assert not (tmp_path / "fp32.plan").exists()


@pytest.mark.parametrize(
    ("major", "options", "words"),
    [
        (8, {"strip_weights": True}, r"strip_weights. Received: tensorrt 8\.x: its BuilderFlag has no STRIP_PLAN"),
        (8, {"hardware_compatibility": "same_compute_capability"}, r"same_compute_capability. Received: tensorrt 8\.x"),
        (11, {"targets": ("SM86",)}, r"targets. Received: tensorrt 11\.x.*TensorRT-RTX"),
    ],
)
def test_what_a_classic_version_lacks_is_refused_by_name(major: int, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ProjectError, match=words):
        refuse_unsupported(BuildOptions(**options), classic(major), gpu("8.9"))


def test_a_library_without_streams_and_threads_says_so() -> None:
    trt = TensorRT(types.SimpleNamespace(IBuilderConfig=object, Builder=object), "tensorrt", "7.x")
    with pytest.raises(ProjectError, match="max_aux_streams"):
        refuse_unsupported(BuildOptions(max_aux_streams=1), trt, gpu("8.9"))
    with pytest.raises(ProjectError, match="builder_threads"):
        refuse_unsupported(BuildOptions(builder_threads=1), trt, gpu("8.9"))


def test_ampere_plus_is_built_on_ampere_or_later() -> None:
    wanted = BuildOptions(hardware_compatibility="ampere_plus")
    refuse_unsupported(wanted, classic(10), gpu("8.0"))
    refuse_unsupported(wanted, classic(10), gpu("12.0"))
    with pytest.raises(ProjectError, match=r"8\.0 \(Ampere\).*Received: 7\.5 here"):
        refuse_unsupported(wanted, classic(10), gpu("7.5"))


@pytest.mark.parametrize("major", [8, 10])
def test_every_option_reaches_the_library_by_name(major: int) -> None:
    trt, config = classic(major), Config()
    builder = trt.module.Builder()
    options = BuildOptions(
        hardware_compatibility="ampere_plus",
        strip_weights=major > 8,
        version_compatible=major == 8,
        max_aux_streams=0,
        builder_threads=3,
    )
    refuse_unsupported(options, trt, gpu("8.9"))
    if major == 8:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(network, "_set_preview_features", lambda *_: None)
            flags = network.configure(trt, builder, config, "fp32", options, ())
        assert flags == ["VERSION_COMPATIBLE"]
    else:
        flags = network.configure(trt, builder, config, "int8", options, ())
        assert flags == ["STRIP_PLAN", "REFIT_IDENTICAL"]
    assert config.on == set(flags)
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"  # type: ignore[attr-defined]
    assert (config.max_aux_streams, builder.max_threads) == (0, 3)


def test_tensorrts_own_refusal_of_a_version_compatible_plan_comes_out(
    tmp_path: Path, rtx: TensorRT, no_driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX lacks the lean runtime as the wheel of 8.6 does, and says so once it is asked."""
    monkeypatch.setattr(build, "refuse_unsupported", lambda *_: None)
    source = tiny_onnx.write(tmp_path / "fp32.onnx")
    with pytest.raises(ProjectError, match=r"(?s)libnvinfer_lean.*version_compatible needs TensorRT's lean runtime"):
        build_engine(
            source,
            tmp_path / "fp32.plan",
            precision="fp32",
            profile=BatchProfile(1, 8, 32),
            trt=rtx,
            options=BuildOptions(version_compatible=True),
        )
    assert not (tmp_path / "fp32.plan").exists()


# --- the timing cache ---


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"+timed"


class CachingConfig(Config):
    """Takes a cache that begins with its own version; what it cannot read it answers as a version of TensorRT does."""

    answer = "none"  # "none": nothing comes back; "empty": an empty cache and a warning; "mismatch": it is not taken

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self.logger = logger
        self.cache: Cache | None = None

    def create_timing_cache(self, data: bytes) -> Cache | None:
        if not data or data.startswith(b"10.x") or self.answer == "mismatch":
            return Cache(data or b"10.x")
        self.logger.log(Severity.WARNING, "Failed to deserialize timing cache")
        return Cache(b"10.x") if self.answer == "empty" else None

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if not cache.data.startswith(b"10.x"):
            self.logger.log(Severity.WARNING, "made by another version")
            return False
        self.cache = cache
        return True


def test_a_timing_cache_is_made_and_then_used(tmp_path: Path) -> None:
    trt = classic(10, CachingConfig)
    file = tmp_path / "caches" / "timing.cache"
    states = []
    for _ in range(2):
        config = CachingConfig(trt.logger())
        cache, state = timing_cache.attach(trt, config, file, trt.logger())
        assert config.cache is cache
        timing_cache.save(cache, file)
        states.append(state)
    assert states == ["new", "used"]
    assert file.read_bytes() == b"10.x+timed+timed"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("answer", ["none", "empty", "mismatch"])
def test_a_damaged_timing_cache_is_replaced_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    trt = classic(10, CachingConfig)
    file = tmp_path / "timing.cache"
    file.write_bytes(b"8.6 or garbage")
    config = CachingConfig(trt.logger())
    config.answer = answer
    with caplog.at_level(logging.WARNING, logger="export"):
        cache, state = timing_cache.attach(trt, config, file, trt.logger())
    assert state.startswith("replaced: ")
    assert "does not fit tensorrt 10.x and is replaced" in caplog.text
    timing_cache.save(cache, file)
    assert file.read_bytes() == b"10.x+timed"


def test_a_cache_that_cannot_be_kept_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").write_text("a file where a folder is needed")
    with caplog.at_level(logging.WARNING, logger="export"):
        timing_cache.save(Cache(b"10.x"), tmp_path / "taken" / "timing.cache")
    assert "is not kept" in caplog.text


def test_a_cache_that_tensorrt_does_not_give_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="export"):
        timing_cache.save(types.SimpleNamespace(serialize=lambda: None), tmp_path / "timing.cache")
    assert "is not kept: TensorRT returned no timings" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_rtx_leaves_the_timing_cache_out_and_says_so(
    tmp_path: Path, rtx: TensorRT, no_driver: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A recipe that names one for the GPU machine builds here too."""
    timing_cache._warn_left_out.cache_clear()
    source = tiny_onnx.write(tmp_path / "fp32.onnx")
    options = BuildOptions(timing_cache=tmp_path / "timing.cache")
    with caplog.at_level(logging.WARNING, logger="export"):
        for name in ("a.plan", "b.plan"):
            made = build_engine(
                source, tmp_path / name, precision="fp32", profile=BatchProfile(1, 8, 32), trt=rtx, options=options
            )
    assert made.options["timing_cache"].startswith("left out: rtx ")
    assert caplog.text.count("timing_cache is left out") == 1
    assert not (tmp_path / "timing.cache").exists()


def test_no_device_is_needed_to_be_told(tmp_path: Path, no_driver: None) -> None:
    source = tiny_onnx.write(tmp_path / "fp32.onnx")
    with pytest.raises(EngineDeviceError, match="no NVIDIA driver"):
        build_engine(source, tmp_path / "fp32.plan", precision="fp32", profile=BatchProfile(1, 8, 32), trt=classic(10))
