"""Arrays of other libraries on the GPU: CuPy and PyTorch are stood for by their protocols."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import OutOfMemoryError, RunnerError
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.tensorrt.device_input import _DLTensor
from pipeline.runners.tensorrt.runner import TensorRTRunner
from tests.fakes.cuda import Code, FakeRuntime
from tests.fakes.engine import assert_answers, install, make_plan, pixels
from tests.fakes.gpu import FakeTensorRT


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return install(monkeypatch)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return make_plan(tmp_path / "x.plan")


class OnGpu:
    """An array in the fake GPU's memory, ``offset`` bytes behind an aligned address."""

    def __init__(self, runtime: FakeRuntime, values: np.ndarray, offset: int = 0) -> None:
        self.values = np.ascontiguousarray(values)
        self.base = runtime.cudaMalloc(self.values.nbytes + offset)[1]
        self.address = self.base + offset
        ctypes.memmove(self.address, self.values.ctypes.data, self.values.nbytes)
        runtime.written.add(self.address)
        self.shape, self.strides = values.shape, None
        self.dtype = values.dtype

    def read(self) -> np.ndarray:
        raw = (ctypes.c_uint8 * self.values.nbytes).from_address(self.address)
        return np.frombuffer(raw, self.dtype).reshape(self.values.shape).copy()


class Interface(OnGpu):
    """With ``__cuda_array_interface__``, as Numba and older libraries."""

    read_only = False
    version: dict[str, Any] = {"version": 3, "stream": None}  # noqa: RUF012

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, self.read_only),
            "strides": self.strides,
            **self.version,
        }


class DLPack(OnGpu):
    """With DLPack, as CuPy and PyTorch."""

    device = (2, 0)
    streams: list[int]
    explicit_strides = False

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int) -> Any:
        self.streams = [*getattr(self, "streams", []), stream]
        axes = len(self.shape)
        tensor = _DLTensor()
        # As libraries do: the address of the block, and how far behind it the first element is.
        tensor.data, tensor.byte_offset = self.base, self.address - self.base
        tensor.device.type, tensor.device.index = self.device
        tensor.ndim = axes
        tensor.dtype.code = {"i": 0, "u": 1, "f": 2, "c": 5}[self.dtype.kind]
        tensor.dtype.bits, tensor.dtype.lanes = self.dtype.itemsize * 8, 1
        shape = (ctypes.c_int64 * axes)(*self.shape)
        tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
        if self.explicit_strides or self.strides is not None:
            steps = self.strides or [int(np.prod(self.shape[axis + 1 :])) for axis in range(axes)]
            self.kept = (ctypes.c_int64 * axes)(*steps)
            tensor.strides = ctypes.cast(self.kept, ctypes.POINTER(ctypes.c_int64))
        self.alive = (tensor, shape)
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(tensor), b"dltensor", None)


def outputs_for(kind: type[OnGpu], runtime: FakeRuntime, count: int, offset: int = 0) -> list[Any]:
    return [kind(runtime, np.zeros((count, 3), np.float32), offset) for _ in range(2)]


@pytest.mark.parametrize("cuda", ["bindings", "pycuda"])
@pytest.mark.parametrize("kind", [Interface, DLPack])
@pytest.mark.parametrize("offset", [0, 4])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_arrays_on_the_gpu_are_classified(
    plan: Path, gpu: FakeTensorRT, kind: Any, offset: int, count: int, cuda: Any
) -> None:
    images = pixels(count)
    with TensorRTRunner(plan, RuntimeOptions(cuda=cuda)) as runner:
        source, targets = kind(gpu.runtime, images, offset), outputs_for(kind, gpu.runtime, count, offset)
        for _ in range(2):
            assert runner.infer_device(source, targets) == tuple(targets)
            assert_answers(targets[0].read(), images)
            np.testing.assert_allclose(targets[1].read().sum(1), 1, rtol=1e-6)
        np.testing.assert_array_equal(runner.infer(images).logits, targets[0].read())


@pytest.mark.parametrize("kind", [Interface, DLPack])
def test_nothing_is_copied_where_nothing_has_to_be(plan: Path, gpu: FakeTensorRT, kind: Any) -> None:
    with TensorRTRunner(plan) as runner:
        source, targets = kind(gpu.runtime, pixels(3)), outputs_for(kind, gpu.runtime, 3)
        source.explicit_strides = True
        runner.infer_device(source, targets)
        assert "cudaMemcpyAsync" not in gpu.runtime.calls
        given = runner.infer_device(source)
        assert "cudaMemcpyAsync" not in gpu.runtime.calls
        interface = given.logits.__cuda_array_interface__
        assert (interface["shape"], interface["typestr"], interface["version"]) == ((3, 3), "<f4", 3)
        raw = (ctypes.c_uint8 * given.logits.nbytes).from_address(interface["data"][0])
        np.testing.assert_array_equal(np.frombuffer(raw, np.float32).reshape(3, 3), targets[0].read())


def test_memory_of_the_runner_grows_once(plan: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(plan) as runner:
        source = Interface(gpu.runtime, pixels(6))
        runner.infer_device(source)
        before = gpu.runtime.calls.count("cudaMalloc")
        runner.infer_device(source)
        assert gpu.runtime.calls.count("cudaMalloc") == before
        larger = Interface(gpu.runtime, pixels(9))
        found = runner.infer_device(larger)
        assert gpu.runtime.calls.count("cudaMalloc") == before + 3  # the array and two outputs
        raw = (ctypes.c_uint8 * found.logits.nbytes).from_address(found.logits.address)
        assert_answers(np.frombuffer(raw, np.float32).reshape(9, 3), pixels(9))
    assert gpu.runtime.live == 2  # the arrays of the test


def test_fewer_than_the_smallest_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(monkeypatch, sizes=(3, 3, 4))
    with TensorRTRunner(make_plan(tmp_path / "x.plan", (3, 3, 4))) as runner:
        targets = outputs_for(DLPack, gpu.runtime, 5)
        runner.infer_device(DLPack(gpu.runtime, pixels(5)), targets)
        assert_answers(targets[0].read(), pixels(5))
    assert gpu.batches == [4, 3]


def test_the_work_of_the_other_library_comes_first(plan: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(plan) as runner:
        source = DLPack(gpu.runtime, pixels(2))
        runner.infer_device(source)
        assert gpu.runtime.handles[source.streams[0]] == "stream"  # ours: the library lets it wait for its own
        for version, waited in (
            ({"version": 2}, [None]),
            ({"version": 3}, [None]),
            ({"version": 3, "stream": 77}, [77]),
            ({"version": 3, "stream": None}, []),
        ):
            older = Interface(gpu.runtime, pixels(2))
            older.version = version
            gpu.runtime.waited_for.clear()
            runner.infer_device(older)
            assert gpu.runtime.waited_for == waited


def with_changes(array: Any, **changes: Any) -> Any:
    for name, value in changes.items():
        setattr(array, name, value)
    return array


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda gpu: pixels(2), r"images on GPU 0. Received: host memory.*infer\(\)"),
        (lambda gpu: [1, 2], r"DLPack or __cuda_array_interface__. Received: list"),
        (lambda gpu: with_changes(DLPack(gpu, pixels(2)), device=(2, 1)), r"images on GPU 0. Received: GPU 1"),
        (lambda gpu: DLPack(gpu, pixels(2).astype(np.float32)), r"uint8 of shape \(N, 4, 5, 3\). Received: float32"),
        (lambda gpu: DLPack(gpu, pixels(2).astype(np.complex64)), "integers or floats. Received: DLPack type 5"),
        (lambda gpu: Interface(gpu, pixels(2)[:, :3]), r"Received: uint8 \(2, 3, 5, 3\)"),
        (lambda gpu: with_changes(DLPack(gpu, pixels(2)), shape=(0, 4, 5, 3)), r"Received: uint8 \(0, 4, 5, 3\)"),
        (lambda gpu: with_changes(DLPack(gpu, pixels(2)), shape=()), r"Received: uint8 \(\)"),
        (lambda gpu: with_changes(DLPack(gpu, pixels(2)), strides=(120, 15, 3, 1)), "C-contiguous"),
        (lambda gpu: with_changes(Interface(gpu, pixels(2)), strides=(60, 15, 3, 2)), "C-contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(plan: Path, gpu: FakeTensorRT, make: Any, words: str) -> None:
    with TensorRTRunner(plan) as runner, pytest.raises(RunnerError, match=words):
        runner.infer_device(make(gpu.runtime))
    assert gpu.batches == []


def test_outputs_that_do_not_fit_are_refused(plan: Path, gpu: FakeTensorRT) -> None:
    runtime = gpu.runtime
    with TensorRTRunner(plan) as runner:
        source = DLPack(runtime, pixels(2))
        for outputs, words in (
            (outputs_for(DLPack, runtime, 2)[:1], "two arrays.*Received: 1"),
            (outputs_for(DLPack, runtime, 3), r"logits on the GPU as float32 of shape \(2, 3\). Received: .*\(3, 3\)"),
            ([with_changes(one, read_only=True) for one in outputs_for(Interface, runtime, 2)], "read-only"),
        ):
            with pytest.raises(RunnerError, match=words):
                runner.infer_device(source, outputs)
    with pytest.raises(RunnerError, match="open runner"):
        runner.infer_device(source)


def test_memory_of_another_gpu_is_refused(plan: Path, gpu: FakeTensorRT) -> None:
    for cuda in ("bindings", "pycuda"):
        with TensorRTRunner(plan, RuntimeOptions(cuda=cuda)) as runner:  # type: ignore[arg-type]
            source = Interface(gpu.runtime, pixels(2))
            gpu.runtime.on_other_device.add(source.address)
            with pytest.raises(RunnerError, match=r"images on GPU 0. Received: Interface in the memory of another"):
                runner.infer_device(source)


def test_what_a_library_refuses_is_our_error(plan: Path, gpu: FakeTensorRT) -> None:
    class Gradient(DLPack):
        def __dlpack__(self, *, stream: int) -> Any:
            raise BufferError("Can't export tensors that require gradient")

    with TensorRTRunner(plan) as runner:
        with pytest.raises(RunnerError, match="Gradient: Can't export tensors that require gradient"):
            runner.infer_device(Gradient(gpu.runtime, pixels(2)))
        masked = Interface(gpu.runtime, pixels(2))
        masked.version = {"version": 3, "stream": None, "mask": masked}
        with pytest.raises(RunnerError, match="without a mask"):
            runner.infer_device(masked)


def test_memory_that_could_not_grow_is_asked_for_again(plan: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(plan) as runner:
        small, large = Interface(gpu.runtime, pixels(2)), Interface(gpu.runtime, pixels(9))
        runner.infer_device(small)
        gpu.runtime.fail["cudaMalloc"] = Code.cudaErrorMemoryAllocation
        with pytest.raises(OutOfMemoryError):
            runner.infer_device(large)
        gpu.runtime.fail.clear()
        for source, count in ((small, 2), (large, 9)):
            found = runner.infer_device(source)
            raw = (ctypes.c_uint8 * found.logits.nbytes).from_address(found.logits.address)
            assert_answers(np.frombuffer(raw, np.float32).reshape(count, 3), pixels(count))


def test_strides_of_axes_with_one_element_do_not_matter(plan: Path, gpu: FakeTensorRT) -> None:
    with TensorRTRunner(plan) as runner:
        targets = outputs_for(Interface, gpu.runtime, 1)
        source = with_changes(DLPack(gpu.runtime, pixels(1)), strides=(7, 15, 3, 1))
        runner.infer_device(source, targets)
        assert_answers(targets[0].read(), pixels(1))
