import sys
import types

import numpy as np
import pytest

from export.driver import driver_status
from pipeline.errors import DeviceUnavailableError, RunnerError
from pipeline.runners import cuda
from pipeline.runners.cuda import DeviceBuffer, Event, PinnedBuffer, Stream, check
from tests.fake_gpu import Code, FakeRuntime


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    made = FakeRuntime()
    monkeypatch.setattr(cuda, "runtime", lambda: made)
    return made


def test_copies_there_and_back(fake: FakeRuntime) -> None:
    with Stream() as stream, PinnedBuffer((2, 3), np.float32) as host, DeviceBuffer(24) as device:
        assert host.array.shape == (2, 3)
        assert host.array.dtype == np.float32
        host.array[:] = np.arange(6).reshape(2, 3)
        device.upload(host, 24, stream)
        stream.synchronize()
        host.array[:] = -1
        device.download(host, 12, stream)
        assert host.array.max() == -1  # queued, not done
        stream.synchronize()
        assert host.array.tolist() == [[0, 1, 2], [-1, -1, -1]]
    assert fake.live == 0


def test_a_copy_that_does_not_fit_is_refused(fake: FakeRuntime) -> None:
    with Stream() as stream, PinnedBuffer((8,), np.uint8) as host, DeviceBuffer(4) as device:
        for copy in (device.upload, device.download):
            with pytest.raises(RunnerError, match=r"at most 4 bytes to copy. Received: 5"):
                copy(host, 5, stream)
        assert "cudaMemcpyAsync" not in fake.calls


def test_events_measure_milliseconds(fake: FakeRuntime) -> None:
    with Stream() as stream, Event() as start, Event() as end:
        start.record(stream)
        end.record(stream)
        end.synchronize()
        assert end.elapsed_ms(start) == 1.0
    assert fake.live == 0


def test_closing_twice_frees_once_and_using_a_closed_one_is_refused(fake: FakeRuntime) -> None:
    buffer, host, stream = DeviceBuffer(8), PinnedBuffer((8,), np.uint8), Stream()
    for owner in (buffer, host, stream):
        owner.close()
        owner.close()
    assert fake.live == 0
    assert host.array.size == 0
    with pytest.raises(RunnerError, match=r"open device buffer. Received: one that was closed"):
        int(buffer)


def test_a_failing_release_does_not_hide_the_error(fake: FakeRuntime, caplog: pytest.LogCaptureFixture) -> None:
    fake.fail["cudaFree"] = Code.cudaErrorIllegalAddress
    with pytest.raises(ZeroDivisionError), DeviceBuffer(8):
        raise ZeroDivisionError
    assert "releasing a device buffer" in caplog.text


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (Code.cudaErrorMemoryAllocation, RunnerError, "cudaErrorMemoryAllocation.*smaller batch profile"),
        (Code.cudaErrorIllegalAddress, RunnerError, r"\(700\): text of .*Restart this process"),
        (Code.cudaErrorInvalidDevice, RunnerError, "cudaErrorInvalidDevice"),
        (Code.cudaErrorInsufficientDriver, DeviceUnavailableError, "Update the driver"),
    ],
)
def test_codes_become_errors(fake: FakeRuntime, code: Code, kind: type[Exception], words: str) -> None:
    fake.fail["cudaMalloc"] = code
    with pytest.raises(RunnerError, match=f"allocating 8 bytes on the device.*{words}") as caught:
        DeviceBuffer(8)
    assert type(caught.value) is kind
    assert ("Restart" in str(caught.value)) == (code is Code.cudaErrorIllegalAddress)


def test_check_returns_what_the_call_returned() -> None:
    assert check((Code.cudaSuccess,), "x") is None
    assert check((Code.cudaSuccess, 7), "x") == 7
    assert check((Code.cudaSuccess, 7, 8), "x") == (7, 8)


def test_no_such_device(fake: FakeRuntime) -> None:
    with pytest.raises(RunnerError, match="choosing device 3"):
        cuda.set_device(3)


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.ModuleType("cuda.bindings"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(RunnerError, match=r"cuda-bindings.*requirements-gpu\.txt"):
        Stream()


def test_the_real_bindings_have_every_name() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    used = [name for name in vars(FakeRuntime) if name.startswith("cuda")]
    assert len(used) > 15
    assert [name for name in used if not hasattr(real, name)] == []
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(real.cudaMemcpyKind.__members__)
    known = set(real.cudaError_t.__members__)
    # Some codes are newer than the oldest bindings; a misspelt one would be in none.
    assert {"cudaErrorIllegalAddress", "cudaErrorLaunchFailure", *cuda._NO_DEVICE} <= known
    assert len(set(cuda._STICKY) & known) >= len(cuda._STICKY) - 2


def test_the_real_bindings_without_a_gpu_are_an_unavailable_device() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if driver_status():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceUnavailableError, match=r"cudaErrorInsufficientDriver.*no NVIDIA driver"):
        DeviceBuffer(8)


@pytest.mark.gpu
def test_a_real_round_trip() -> None:
    if not (status := driver_status()):
        pytest.skip(status.reason)
    with Stream() as stream, PinnedBuffer((1000,), np.int32) as host, DeviceBuffer(4000) as device:
        with Event() as start, Event() as end:
            host.array[:] = np.arange(1000)
            start.record(stream)
            device.upload(host, 4000, stream)
            stream.synchronize()
            host.array[:] = 0
            device.download(host, 4000, stream)
            end.record(stream)
            stream.synchronize()
            assert end.elapsed_ms(start) > 0
        assert (host.array == np.arange(1000)).all()
