"""Both implementations of the CUDA protocol, on a fake and, with a GPU, on the real one."""

import sys
import types
from typing import Any

import numpy as np
import pytest

from export.errors import DeviceUnavailableError, OutOfMemoryError, RunnerError
from export.tensorrt.driver import driver_status
from pipeline.runners.cuda import api as cuda
from pipeline.runners.cuda import bindings, pycuda
from pipeline.runners.cuda.api import CudaApi
from pipeline.runners.cuda.bindings import CudaBindings, check
from pipeline.runners.cuda.open import find_cuda
from pipeline.runners.cuda.resources import DeviceBuffer, Event, Graph, PinnedBuffer, Stream
from tests.fakes.cuda import Code, FakeRuntime
from tests.fakes.pycuda import fake_pycuda


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    made = FakeRuntime(devices=2)
    for module in ("runtime", "driver_api"):
        monkeypatch.setattr(bindings, module, lambda: made)
    driver = fake_pycuda(made)
    monkeypatch.setattr(pycuda, "driver", lambda: driver)
    return made


@pytest.fixture(params=["bindings", "pycuda"])
def api(request: pytest.FixtureRequest, fake: FakeRuntime) -> Any:
    found = find_cuda(request.param)
    with found.scope(0):
        yield found


def test_copies_there_and_back(fake: FakeRuntime, api: CudaApi) -> None:
    with Stream(api) as stream, PinnedBuffer(api, (2, 3), np.float32) as host, DeviceBuffer(api, 24) as device:
        assert host.array.shape == (2, 3)
        assert host.array.dtype == np.float32
        host.array[:] = np.arange(6).reshape(2, 3)
        device.upload(host.handle, 24, stream)
        stream.synchronize()
        host.array[:] = -1
        device.download(host.handle, 12, stream)
        assert host.array.max() == -1  # queued, not done
        stream.synchronize()
        assert host.array.tolist() == [[0, 1, 2], [-1, -1, -1]]
        host.array[:] = 9
        device.upload(host.handle, 4, stream, offset=20)
        with DeviceBuffer(api, 24) as other:
            other.fill_from(int(device), 24, stream)
            other.copy_to(int(device) + 4, 4, stream)
            device.download(host.handle, 24, stream)
            stream.synchronize()
        assert host.array.tolist() == [[0, 0, 2], [3, 4, 9]]
    del stream
    assert fake.live == 0


def test_a_copy_that_does_not_fit_is_refused(fake: FakeRuntime, api: CudaApi) -> None:
    with Stream(api) as stream, PinnedBuffer(api, (8,), np.uint8) as host, DeviceBuffer(api, 4) as device:
        for copy in (device.upload, device.download, device.fill_from, device.copy_to):
            with pytest.raises(RunnerError, match=r"at most 4 bytes to copy. Received: 5"):
                copy(host.handle, 5, stream)
        with pytest.raises(RunnerError, match=r"at most 4 bytes to copy. Received: 6"):
            device.upload(host.handle, 4, stream, offset=2)
        assert "cudaMemcpyAsync" not in fake.calls


def test_streams_wait_for_events_and_events_measure(fake: FakeRuntime, api: CudaApi) -> None:
    with Stream(api) as first, Stream(api) as second, Event(api, timed=True) as start, Event(api, timed=True) as end:  # noqa: SIM117
        with PinnedBuffer(api, (4,), np.uint8) as host, DeviceBuffer(api, 4) as device, Event(api) as uploaded:
            host.array[:] = 5
            start.record(first)
            device.upload(host.handle, 4, first)
            uploaded.record(first)
            second.wait(uploaded)
            with PinnedBuffer(api, (4,), np.uint8) as back:
                device.download(back.handle, 4, second)
                second.synchronize()
                assert back.array.tolist() == [5, 5, 5, 5]
            end.record(first)
            end.synchronize()
            assert end.elapsed_ms(start) > 0
    assert api.stream_number(Stream(api).handle) > 0


def test_the_current_device_is_as_it_was_afterwards(fake: FakeRuntime) -> None:
    fake.device = 1
    with find_cuda("bindings").scope(0):
        assert fake.device == 0
    assert fake.device == 1
    fake.context = 99  # of PyCUDA, on the same device
    with find_cuda("bindings").scope(1):
        assert fake.context == 2
    assert fake.context == 99


def test_a_graph_runs_what_was_recorded(fake: FakeRuntime) -> None:
    api = CudaBindings()
    with Stream(api) as stream, PinnedBuffer(api, (4,), np.uint8) as host, DeviceBuffer(api, 4) as device:
        with Graph(api, stream, lambda: device.upload(host.handle, 4, stream)) as graph:
            for value in (3, 4):
                host.array[:] = value
                graph.launch(stream)
                device.download(host.handle, 4, stream)
                stream.synchronize()
                assert host.array.tolist() == [value] * 4
        with pytest.raises(ZeroDivisionError):
            Graph(api, stream, lambda: 1 / 0)
        fake.fail["cudaStreamEndCapture"] = Code.cudaErrorStreamCaptureUnsupported
        with pytest.raises(RunnerError, match="recording a graph"):
            Graph(api, stream, lambda: None)
        fake.fail = {"cudaGraphInstantiate": Code.cudaErrorMemoryAllocation}
        with pytest.raises(OutOfMemoryError, match="preparing a graph"):
            Graph(api, stream, lambda: None)
        assert not fake.capturing
    assert fake.live == 0


def test_pycuda_has_no_graphs(fake: FakeRuntime) -> None:
    api = find_cuda("pycuda")
    assert (api.graphs, CudaBindings().graphs) == (False, True)
    with api.scope(0), Stream(api) as stream, pytest.raises(RunnerError, match=r"PyCUDA.*runtime\.cuda: bindings"):
        Graph(api, stream, lambda: None)


def test_pycuda_uses_the_context_of_the_caller(fake: FakeRuntime) -> None:
    driver = pycuda.driver()
    own = driver.Device(1).make_context()
    api = find_cuda("pycuda")
    with api.scope(1), DeviceBuffer(api, 4):
        assert driver.Context.get_current() is own
    assert driver.Context.get_current() is own
    with pytest.raises(RunnerError, match=r"on device 0\. Received: one on fake 1"):
        find_cuda("pycuda").scope(0).__enter__()
    driver.Context.pop()
    with api.scope(1):  # the runner's context, though the caller left it
        assert driver.Context.get_current() is own
    assert driver.Context.get_current() is None


def test_closing_twice_frees_once_and_using_a_closed_one_is_refused(fake: FakeRuntime, api: CudaApi) -> None:
    buffer, host, stream = DeviceBuffer(api, 8), PinnedBuffer(api, (8,), np.uint8), Stream(api)
    for owner in (buffer, host, stream):
        owner.close()
        owner.close()
    assert fake.live == 0
    assert host.array.size == 0
    with pytest.raises(RunnerError, match=r"open device buffer. Received: one that was closed"):
        int(buffer)


def test_a_failing_release_does_not_hide_the_error(
    fake: FakeRuntime, api: CudaApi, caplog: pytest.LogCaptureFixture
) -> None:
    fake.fail["cudaFree"] = Code.cudaErrorIllegalAddress
    with pytest.raises(ZeroDivisionError), DeviceBuffer(api, 8):
        raise ZeroDivisionError
    assert "releasing device memory" in caplog.text


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (Code.cudaErrorMemoryAllocation, OutOfMemoryError, "MemoryAllocation.*smaller batch profile"),
        (Code.cudaErrorIllegalAddress, RunnerError, r"illegal memory access|\(700\): text of .*Restart this process"),
        (Code.cudaErrorInvalidDevice, RunnerError, "cudaErrorInvalidDevice"),
    ],
)
def test_codes_become_errors(fake: FakeRuntime, api: CudaApi, code: Code, kind: type[Exception], words: str) -> None:
    fake.fail["cudaMalloc"] = code
    with pytest.raises(RunnerError, match=f"allocating 8 bytes on the device.*({words})") as caught:
        DeviceBuffer(api, 8)
    assert type(caught.value) is kind
    assert ("Restart" in str(caught.value)) == (code is Code.cudaErrorIllegalAddress)


def test_a_driver_that_is_too_old_or_absent(fake: FakeRuntime) -> None:
    fake.fail["cudaMalloc"] = Code.cudaErrorInsufficientDriver
    with pytest.raises(RunnerError, match="Update the driver") as caught:
        DeviceBuffer(CudaBindings(), 8)
    assert isinstance(caught.value, DeviceUnavailableError) == (not driver_status())


def test_check_returns_what_the_call_returned() -> None:
    assert check((Code.cudaSuccess,), "x") is None
    assert check((Code.cudaSuccess, 7), "x") == 7
    assert check((Code.cudaSuccess, 7, 8), "x") == (7, 8)


def test_no_such_device(fake: FakeRuntime) -> None:
    for name in ("bindings", "pycuda"):
        with pytest.raises(RunnerError, match="choosing device 3"), find_cuda(name).scope(3):
            raise AssertionError


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda.bindings", "pycuda"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(RunnerError, match=r"cuda-bindings.*requirements-gpu\.txt"):
        find_cuda("bindings")
    with pytest.raises(RunnerError, match=r"pycuda.*requirements-pycuda\.txt"):
        find_cuda("pycuda")


def test_auto_takes_what_is_installed(fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, expected in ((("cuda.bindings", "pycuda"), "cuda-bindings"), (("pycuda",), "PyCUDA")):
        monkeypatch.setattr("pipeline.runners.cuda.open._installed", lambda name, here=installed: name in here)
        assert find_cuda().name == expected
    with pytest.raises(RunnerError, match=r"auto, bindings or pycuda\. Received: 'cupy'"):
        find_cuda("cupy")


def test_the_real_bindings_have_every_name() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    used = [name for name in vars(FakeRuntime) if name.startswith("cuda")]
    assert len(used) > 25
    assert [name for name in used if not hasattr(real, name)] == []
    for enum in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        assert set(getattr(FakeRuntime, enum).__members__) <= set(getattr(real, enum).__members__)
    assert (FakeRuntime.cudaStreamNonBlocking, FakeRuntime.cudaEventDisableTiming) == (
        real.cudaStreamNonBlocking,
        real.cudaEventDisableTiming,
    )
    known = set(real.cudaError_t.__members__)
    # Some codes are newer than the oldest bindings; a misspelt one would be in none.
    assert {"cudaErrorIllegalAddress", "cudaErrorLaunchFailure", *bindings.NO_DEVICE} <= known
    assert len(set(cuda.STICKY) & known) >= len(cuda.STICKY) - 2


def test_the_real_bindings_without_a_gpu_are_an_unavailable_device() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if driver_status():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceUnavailableError, match=r"cudaErrorInsufficientDriver.*no NVIDIA driver"):
        DeviceBuffer(CudaBindings(), 8)


@pytest.mark.gpu
def test_a_real_round_trip() -> None:
    if not (status := driver_status()):
        pytest.skip(status.reason)
    api = CudaBindings()
    with api.scope(0), Stream(api) as stream, PinnedBuffer(api, (1000,), np.int32) as host:  # noqa: SIM117
        with DeviceBuffer(api, 4000) as device, Event(api, timed=True) as start, Event(api, timed=True) as end:
            host.array[:] = np.arange(1000)
            start.record(stream)
            device.upload(host.handle, 4000, stream)
            stream.synchronize()
            host.array[:] = 0
            device.download(host.handle, 4000, stream)
            end.record(stream)
            stream.synchronize()
            assert end.elapsed_ms(start) > 0
            assert (host.array == np.arange(1000)).all()
            with Graph(api, stream, lambda: device.download(host.handle, 4000, stream)) as graph:
                host.array[:] = 0
                graph.launch(stream)
                stream.synchronize()
                assert (host.array == np.arange(1000)).all()


def test_what_has_no_graphs_says_so_also_where_one_is_launched() -> None:
    lacking = pycuda.PyCuda.__new__(pycuda.PyCuda)
    for asked in (lambda: lacking.capture(None, lambda: None), lambda: lacking.graph_launch(None, None)):
        with pytest.raises(RunnerError, match=r"Expected CUDA graphs\. Received: .* which has none"):
            asked()
