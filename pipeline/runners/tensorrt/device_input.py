"""Classification of arrays on the GPU that belong to CuPy, PyTorch, Numba or another library.

DLPack (https://dmlc.github.io/dlpack/latest/) is preferred, because the producer then orders its work before ours; the
alternative is ``__cuda_array_interface__`` (https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html).
Python 3.10 syntax, numpy alone.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.errors import RunnerError
from export.tensorrt.sidecar import INPUT, OUTPUTS
from pipeline.runners.cuda.resources import Stream
from pipeline.runners.tensorrt.buffers import Tensor
from pipeline.runners.tensorrt.open_engine import OpenEngine

ALIGNMENT = 256  # bytes, of every address that TensorRT gets
_CUDA_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged
_KINDS = {0: "i", 1: "u", 2: "f"}  # kDLInt, kDLUInt, kDLFloat


class _DLDevice(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):  # the first member of DLManagedTensor
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class DeviceArray:
    """Device memory with a shape. Other libraries take it without a copy: ``cupy.asarray(x)``, ``torch.as_tensor(x)``.

    Attributes:
        address: of the first element.
        shape: of the array, which is C-contiguous.
        dtype: of the elements.
        owner: object that keeps the memory alive.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: Any

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """The array in version 3 of the interface, without a stream: the memory is already written."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": None,
        }


def device_array(array: Any, name: str, device: int, stream: Stream, *, written: bool = False) -> DeviceArray:
    """View another library's array on the GPU without a copy.

    Args:
        array: with ``__dlpack__`` or ``__cuda_array_interface__``.
        name: for messages.
        device: index of the GPU that the array has to be on.
        stream: later work in it runs after the work that the array's library has queued for it.
        written: whether the array will be written to. Defaults to False. DLPack does not report read-only arrays.

    Raises:
        RunnerError: the array is not on this GPU, not contiguous, or read-only.
    """
    try:
        if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
            view, strides = _from_dlpack(array, name, device, stream)
        elif hasattr(array, "__cuda_array_interface__"):
            view, strides = _from_interface(array, name, device, stream, written)
        else:
            raise RunnerError(
                f"Expected {name} as an array on the GPU, with DLPack or __cuda_array_interface__. "
                f"Received: {type(array).__name__}. Arrays in host memory go to infer()."
            )
    except (BufferError, RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise RunnerError(
            f"Expected {name} as an array that its library exports. Received: {type(array).__name__}: {error}. "
            "Detach it from gradients and make it a plain array first."
        ) from error
    if strides is not None and not _contiguous(view.shape, strides):
        raise RunnerError(
            f"Expected {name} to be C-contiguous. Received: shape {view.shape} with strides {tuple(strides)} in "
            "elements. Make it contiguous first."
        )
    return view


def _from_dlpack(array: Any, name: str, device: int, stream: Stream) -> tuple[DeviceArray, Sequence[int] | None]:
    kind, index = map(int, array.__dlpack_device__())
    if kind not in _CUDA_DEVICES or index != device:
        where = f"GPU {index}" if kind in _CUDA_DEVICES else "host memory or another kind of device"
        raise RunnerError(
            f"Expected {name} on GPU {device}. Received: {where} (DLPack device {kind}:{index}). "
            "Copy it there, or pass arrays in host memory to infer()."
        )
    capsule = array.__dlpack__(stream=int(stream))
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    # The capsule keeps its name, so its destructor releases the tensor.
    tensor = _DLTensor.from_address(get(capsule, b"dltensor"))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    code = _KINDS.get(tensor.dtype.code)
    if code is None or tensor.dtype.lanes != 1 or tensor.dtype.bits % 8:
        raise RunnerError(
            f"Expected {name} of integers or floats. Received: DLPack type {tensor.dtype.code} of "
            f"{tensor.dtype.bits} bits."
        )
    strides = [tensor.strides[axis] for axis in range(tensor.ndim)] if tensor.strides else None
    dtype = np.dtype(f"{code}{tensor.dtype.bits // 8}")
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, dtype, (array, capsule)), strides


def _from_interface(
    array: Any, name: str, device: int, stream: Stream, written: bool
) -> tuple[DeviceArray, Sequence[int] | None]:
    interface = array.__cuda_array_interface__
    address, read_only = interface["data"]
    if read_only and written:
        raise RunnerError(f"Expected {name} to be writable. Received: a read-only array. Pass another one.")
    if interface.get("mask") is not None:
        raise RunnerError(f"Expected {name} without a mask. Received: a masked array. Pass its data.")
    if address and not stream.cuda.is_on_device(int(address), device):
        raise RunnerError(
            f"Expected {name} on GPU {device}. Received: {type(array).__name__} in the memory of another device. "
            "Copy it there, or choose its GPU with runtime.device."
        )
    dtype = np.dtype(interface["typestr"])
    nbytes = interface.get("strides")
    strides = None if nbytes is None else [size // dtype.itemsize for size in nbytes]
    if interface.get("version", 0) < 3 or "stream" not in interface:
        stream.cuda.wait_for_foreign_stream(None)  # older versions of the interface do not name the stream
    elif interface["stream"] is not None:
        stream.cuda.wait_for_foreign_stream(int(interface["stream"]))
    return DeviceArray(int(address or 0), tuple(interface["shape"]), dtype, array), strides


def _contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    return all(
        size == 1 or stride == math.prod(shape[axis + 1 :]) for axis, (size, stride) in enumerate(zip(shape, strides))
    )


def run_on_device(opened: OpenEngine, device: int, images: Any, outputs: Sequence[Any] | None) -> list[DeviceArray]:
    """Classify arrays of other libraries while the device is current; return when the results are written.

    Args:
        opened: the engine.
        device: index of its GPU.
        images: uint8, (N, height, width, 3).
        outputs: float32 arrays (N, classes) to write to, in the order of `OUTPUTS`; None: memory of the engine.

    Raises:
        RunnerError: arrays of another dtype, shape or layout, or a failure of TensorRT or CUDA.
    """
    stream = opened.ring.lanes[0].stream
    source = device_array(images, "images", device, stream)
    _check(source, opened.tensors[INPUT], None)
    count = source.shape[0]
    if outputs is None:
        buffers = [(opened.tensors[name], opened.rows(name, count)) for name in OUTPUTS]
        targets = {
            tensor.name: DeviceArray(int(buffer), (count, *tensor.row), tensor.dtype, buffer)
            for tensor, buffer in buffers
        }
    elif len(outputs) == len(OUTPUTS):
        targets = {
            name: device_array(array, name, device, stream, written=True) for name, array in zip(OUTPUTS, outputs)
        }
    else:
        raise RunnerError(f"Expected two arrays, for {' and '.join(OUTPUTS)}. Received: {len(outputs)}.")
    for name, target in targets.items():
        _check(target, opened.tensors[name], count)
    for start in range(0, count, opened.max_batch):
        _run_piece(opened, source, targets, start, min(opened.max_batch, count - start))
    stream.synchronize()
    return list(targets.values())


def _run_piece(
    opened: OpenEngine, source: DeviceArray, targets: Mapping[str, DeviceArray], start: int, count: int
) -> None:
    """Queue one batch: directly on the arrays where TensorRT takes their addresses, else with copies in a slot."""
    lane, slot = opened.ring.lanes[0], opened.ring.slots[0]
    batch = max(count, opened.min_batch)
    addresses, copies = dict(slot.addresses), {}
    for name, array in {INPUT: source, **targets}.items():
        row = opened.tensors[name].row_bytes
        address = array.address + start * row
        if batch == count and address % ALIGNMENT == 0:
            addresses[name] = address
        else:
            copies[name] = (address, count * row)
    if INPUT in copies:
        slot.device[INPUT].fill_from(*copies.pop(INPUT), lane.stream)
    lane.run(batch, addresses)
    for name, (address, nbytes) in copies.items():
        slot.device[name].copy_to(address, nbytes, lane.stream)


def _check(array: DeviceArray, tensor: Tensor, count: int | None) -> None:
    rows = array.shape[0] if count is None and array.shape else count
    if array.dtype != tensor.dtype or not rows or array.shape != (rows, *tensor.row):
        shape = f"({'N' if count is None else count}, {', '.join(map(str, tensor.row))})"
        raise RunnerError(
            f"Expected {tensor.name} on the GPU as {tensor.dtype} of shape {shape}. "
            f"Received: {array.dtype} {array.shape}."
        )
