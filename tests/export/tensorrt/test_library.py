import enum
import logging
import re
import types

import pytest

from export.errors import ProjectError
from export.tensorrt import driver, library
from export.tensorrt.driver import driver_status
from export.tensorrt.library import TensorRT, find_tensorrt, why_missing
from tests.fakes.gpu import FakeDriver


def module(**members: object) -> types.SimpleNamespace:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    logger = type("ILogger", (), {"Severity": Severity})
    return types.SimpleNamespace(
        **{"__version__": "1.0", "Builder": 0, "OnnxParser": 0, "Runtime": 0, "ILogger": logger, **members}
    )


def install(monkeypatch: pytest.MonkeyPatch, **found: object) -> None:
    def fake_import(name: str) -> object:
        result = found.get(name, ModuleNotFoundError(f"No module named '{name}'", name=name))
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(library, "_import", fake_import)
    monkeypatch.setattr(library, "_why_missing", {})


def test_classic_comes_before_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tensorrt=module(__version__="10.13.0"), tensorrt_rtx_bindings=module(__version__="1.7.1"))
    first, rtx = find_tensorrt(), find_tensorrt("rtx")
    assert first is not None
    assert rtx is not None
    assert (first.flavour, first.version) == ("tensorrt", "10.13.0")
    assert (rtx.flavour, rtx.version) == ("rtx", "1.7.1")
    assert why_missing() == {}


def test_rtx_is_found_under_its_second_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tensorrt_rtx=module())
    found = find_tensorrt()
    assert found is not None
    assert found.flavour == "rtx"
    assert set(why_missing()) == {"tensorrt"}


def test_why_missing_names_the_broken_library_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tensorrt=ImportError("libcuda.so.1: cannot open shared object file"))
    assert find_tensorrt() is None
    reasons = why_missing()
    assert "libcuda.so.1" in reasons["tensorrt"]
    assert "is broken" in reasons["tensorrt"]
    assert "not installed" in reasons["rtx"]
    assert "pip install" in reasons["rtx"]


def test_a_missing_part_and_a_stub_count_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    missing_part = ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs")
    install(monkeypatch, tensorrt=missing_part, tensorrt_rtx=types.SimpleNamespace(__version__="1"))
    reasons = why_missing()
    assert "tensorrt is broken: No module named 'tensorrt_libs'" in reasons["tensorrt"]
    assert "tensorrt_rtx is broken: AttributeError" in reasons["rtx"]
    assert "not installed" not in reasons["rtx"]


def test_unknown_flavour() -> None:
    with pytest.raises(ProjectError, match=r"tensorrt, rtx.*'openvino'"):
        find_tensorrt("openvino")


def enumeration(*names: str) -> object:
    return enum.IntEnum("Enumeration", names)


@pytest.mark.parametrize(
    ("network", "flags", "strong"),
    [
        (("EXPLICIT_BATCH",), ("FP16", "INT8", "TF32"), False),  # 8.6
        (("EXPLICIT_BATCH", "STRONGLY_TYPED"), ("FP16", "INT8", "TF32"), True),  # 10
        (("STRONGLY_TYPED",), ("TF32",), True),  # 11
    ],
)
def test_typing_is_asked_by_name(network: tuple[str, ...], flags: tuple[str, ...], strong: bool) -> None:
    made = module(
        NetworkDefinitionCreationFlag=enumeration(*network), BuilderFlag=enumeration(*flags), IBuilderConfig=0
    )
    trt = TensorRT(made, "tensorrt", "?")
    assert trt.strongly_typed == strong
    assert not trt.targets
    assert not trt.builds_without_gpu
    assert not trt.progress_monitor


def test_a_missing_member_is_named() -> None:
    trt = TensorRT(module(BuilderFlag=enumeration("TF32", "REFIT")), "tensorrt", "11.4.0")
    assert trt.member("BuilderFlag", "REFIT") == 2
    with pytest.raises(ProjectError, match=r"BuilderFlag\.FP16.*tensorrt 11\.4\.0 with TF32, REFIT"):
        trt.member("BuilderFlag", "FP16")
    with pytest.raises(ProjectError, match="no such enumeration"):
        trt.member("QuantizationFlag", "X")


def test_the_real_rtx() -> None:
    trt = find_tensorrt("rtx")
    if trt is None:
        pytest.skip(why_missing()["rtx"])
    assert trt.strongly_typed
    assert trt.targets
    assert trt.builds_without_gpu
    assert trt.progress_monitor
    assert not trt.timing_cache
    assert not trt.version_compatible
    assert not trt.hardware_compatible("ampere_plus")
    assert trt.strips_weights
    assert not trt.strips_weights_without_gpu
    assert trt.max_aux_streams
    assert trt.builder_threads
    assert trt.has("ComputeCapability", "SM89")


def test_the_logger_keeps_errors_and_is_one_for_all(caplog: pytest.LogCaptureFixture) -> None:
    trt = TensorRT(module(), "tensorrt", "?")
    heard = trt.logger()
    severity = trt.module.ILogger.Severity
    assert heard.lines() == "(TensorRT logged nothing)"
    with caplog.at_level(logging.DEBUG, logger="export.tensorrt.library"):
        heard.log(severity.WARNING, "slow")
        heard.log(severity.VERBOSE, "noise")
    assert heard.lines() == "slow"
    for number in range(20):
        heard.log(severity.ERROR, f"e{number}")
    assert heard.lines(2) == "e18 | e19"
    assert "noise" not in caplog.text
    assert "slow" in caplog.text
    assert trt.logger() is heard
    assert heard.lines() == "(TensorRT logged nothing)"


def use_driver(monkeypatch: pytest.MonkeyPatch, fake: object) -> None:
    def load() -> object:
        if isinstance(fake, Exception):
            raise fake
        return fake

    monkeypatch.setattr(driver, "_load_cuda", load)
    monkeypatch.setattr(driver, "_kernel_driver_version", lambda: "580.95.05")


def test_the_driver_lists_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, FakeDriver(count=2))
    status = driver_status()
    assert status
    assert status.reason == ""
    assert (status.driver_version, status.cuda_version) == ("580.95.05", "13.1")
    assert len(status.devices) == 2
    assert status.devices[1] == driver.Device("Fake GPU", "8.9", 24 << 30)


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (OSError("libcuda.so.1: cannot open shared object file"), "libcuda.so.1"),
        (FakeDriver(init=100), r"CUDA_ERROR_NO_DEVICE \(100\)"),
        (FakeDriver(count=0), "CUDA_VISIBLE_DEVICES"),
        (types.SimpleNamespace(cuInit=lambda flags: 0), "not usable"),
    ],
)
def test_no_driver_is_a_reason_and_never_an_exception(
    monkeypatch: pytest.MonkeyPatch, fake: object, words: str
) -> None:
    use_driver(monkeypatch, fake)
    status = driver_status()
    assert not status
    assert status.devices == ()
    assert re.search(words, status.reason)


def test_an_interrupt_inside_the_logger_is_kept_for_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT calls the logger from its own code and swallows what it raises, a Ctrl-C too."""
    trt = find_tensorrt("rtx")
    if trt is None:
        pytest.skip("TensorRT-RTX has no wheel for this platform")
    logger = trt.logger()

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(library.log, "log", interrupted)
    logger.log(trt.module.ILogger.Severity.INFO, "hello")
    with pytest.raises(KeyboardInterrupt):
        logger.raise_pending()
    logger.raise_pending()  # once
