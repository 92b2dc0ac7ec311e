"""Classifies arrays that lie on the GPU already and belong to another library.

Arrays on the GPU that belong to another library: CuPy, PyTorch, Numba and whatever follows their protocols.

DLPack (https://dmlc.github.io/dlpack/latest/) is asked first: the producer then orders its own work before ours;
``__cuda_array_interface__`` (https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html) is the other.
Python 3.10 syntax, numpy alone.

Classifies what lies on the GPU already, for `TensorRTRunner.infer_device`. Python 3.10 syntax, numpy alone.
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
        shape: sizes, row after row without gaps.
        dtype: of the elements.
        owner: what keeps the memory alive.
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
        """Version 3, without a stream: what wrote the memory has been waited for."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": None,
        }


def device_array(array: Any, name: str, device: int, stream: Stream, *, written: bool = False) -> DeviceArray:
    """See another library's array as it lies on the GPU; nothing is copied.

    Args:
        array: has ``__dlpack__`` or ``__cuda_array_interface__``.
        name: for messages.
        device: index of the GPU that it has to be on.
        stream: what is queued here afterwards runs after what its library has queued for the array.
        written: whether it will be written to. Defaults to False. DLPack does not tell arrays that must not be.

    Raises:
        RunnerError: it is not on this GPU, has gaps, or may not be written to.
    """
    found = None
    try:
        if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
            found, strides = _from_dlpack(array, name, device, stream)
        elif hasattr(array, "__cuda_array_interface__"):
            found, strides = _from_interface(array, name, device, stream, written)
    except (BufferError, RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise RunnerError(
            f"Expected {name} as an array that its library hands out. Received: {type(array).__name__}: {error}. "
            "Detach it from gradients and make it a plain array first."
        ) from error
    if found is None:
        raise RunnerError(
            f"Expected {name} as an array on the GPU, with DLPack or __cuda_array_interface__. "
            f"Received: {type(array).__name__}. Arrays in host memory go to infer()."
        )
    if strides is not None and not _contiguous(found.shape, strides):
        raise RunnerError(
            f"Expected {name} without gaps, row after row. Received: shape {found.shape} with strides {tuple(strides)} "
            "in elements. Make it contiguous first."
        )
    return found


def _from_dlpack(array: Any, name: str, device: int, stream: Stream) -> tuple[DeviceArray, Sequence[int] | None]:
    kind, index = (int(one) for one in array.__dlpack_device__())
    if kind not in _CUDA_DEVICES or index != device:
        where = f"GPU {index}" if kind in _CUDA_DEVICES else "host memory or another kind of device"
        raise RunnerError(
            f"Expected {name} on GPU {device}. Received: {where} (DLPack device {kind}:{index}). "
            "Copy it there, or pass arrays in host memory to infer()."
        )
    capsule = array.__dlpack__(stream=int(stream))
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    # The capsule keeps its name and so its destructor: the tensor is released with it.
    tensor = _DLTensor.from_address(get(capsule, b"dltensor"))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    kind_of = _KINDS.get(tensor.dtype.code)
    if kind_of is None or tensor.dtype.lanes != 1 or tensor.dtype.bits % 8:
        raise RunnerError(
            f"Expected {name} of integers or floats. Received: DLPack type {tensor.dtype.code} of "
            f"{tensor.dtype.bits} bits."
        )
    strides = [tensor.strides[axis] for axis in range(tensor.ndim)] if tensor.strides else None
    dtype = np.dtype(f"{kind_of}{tensor.dtype.bits // 8}")
    address = (tensor.data or 0) + tensor.byte_offset
    return DeviceArray(address, shape, dtype, (array, capsule)), strides


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
    strides = interface.get("strides")
    if strides is not None:
        strides = [size // dtype.itemsize for size in strides]
    if interface.get("version", 0) < 3 or "stream" not in interface:
        stream.cuda.wait_for_foreign_stream(None)  # the older protocol does not say which stream
    elif interface["stream"] is not None:
        stream.cuda.wait_for_foreign_stream(int(interface["stream"]))
    return DeviceArray(int(address or 0), tuple(interface["shape"]), dtype, array), strides


def _contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    expected = (math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return all(size == 1 or stride == plain for size, stride, plain in zip(shape, strides, expected))


ALIGNMENT = 256  # bytes, of every address that TensorRT gets


def run_on_device(opened: OpenEngine, device: int, images: Any, outputs: Sequence[Any] | None) -> list[DeviceArray]:
    """Classify arrays of other libraries, in a scope of the device; returns when the results are there.

    Args:
        opened: the engine.
        device: index of its GPU.
        images: uint8, (N, height, width, 3).
        outputs: where the results go, float32, (N, classes), in the order of `OUTPUTS`; None: memory of the engine.

    Raises:
        RunnerError: arrays that do not fit, or a failure of TensorRT or CUDA.
    """
    stream = opened.ring.lanes[0].stream
    source = device_array(images, "images", device, stream)
    _check(source, opened.tensors[INPUT], None)
    count = source.shape[0]
    if outputs is None:
        targets = {}
        for name in OUTPUTS:
            tensor, buffer = opened.tensors[name], opened.rows(name, count)
            targets[name] = DeviceArray(int(buffer), (count, *tensor.row), tensor.dtype, buffer)
    elif len(outputs) == len(OUTPUTS):
        targets = {name: device_array(one, name, device, stream, written=True) for name, one in zip(OUTPUTS, outputs)}
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
    """Queue one batch: straight from and to the arrays where TensorRT takes their addresses, else by way of a slot."""
    lane, slot = opened.ring.lanes[0], opened.ring.slots[0]
    batch = max(count, opened.min_batch)

    addresses, aside = dict(slot.addresses), {}
    for name, array in {INPUT: source, **targets}.items():
        row = opened.tensors[name].row_bytes
        address = array.address + start * row
        if batch == count and address % ALIGNMENT == 0:
            addresses[name] = address
        else:
            aside[name] = (address, count * row)
    if copied := aside.pop(INPUT, None):
        slot.device[INPUT].fill_from(*copied, lane.stream)
    lane.run(batch, addresses)
    for name, (address, nbytes) in aside.items():
        slot.device[name].copy_to(address, nbytes, lane.stream)


def _check(array: DeviceArray, tensor: Tensor, count: int | None) -> None:
    rows = array.shape[0] if count is None and array.shape else count
    if array.dtype != tensor.dtype or not rows or array.shape != (rows, *tensor.row):
        shape = f"({'N' if count is None else count}, {', '.join(map(str, tensor.row))})"
        raise RunnerError(
            f"Expected {tensor.name} on the GPU as {tensor.dtype} of shape {shape}. "
            f"Received: {array.dtype} {array.shape}."
        )
