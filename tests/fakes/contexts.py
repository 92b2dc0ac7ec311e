"""Execution contexts in host memory, as the bindings of TensorRT 8.6, 10 to 11 and TensorRT-RTX describe theirs."""

from __future__ import annotations

import ctypes
import enum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tests.fakes.gpu import FakeEngine, FakeTensorRT

ACTIVATION_BYTES = 1000  # an image


class Strategy(enum.IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class GraphStrategy(enum.IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Validity(enum.IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class Verbosity(enum.IntEnum):
    NONE = 1
    DETAILED = 2


class Specialization(enum.IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class FakeContext:
    """An execution context with the methods of all versions."""

    nvtx_verbosity = Verbosity.DETAILED

    def __init__(self, engine: FakeEngine, own_graph: bool, kernels: Specialization | None) -> None:
        self.engine, self.own_graph, self.kernels = engine, own_graph, kernels
        self.gpu: FakeTensorRT = engine.gpu
        # From 10 on a context has profile 0 by default; in 8.6 only the first one of an engine has.
        self.profile = 0 if self.gpu.kind != "8" or not engine.contexts else None
        self.profiles_chosen = 0
        self._profile_copied = True
        self.addresses: dict[str, int] = {}
        self.batch = 0
        self.memory: tuple[int, int] | None = None
        self.captured = self.laid_out = False

    def _changed(self) -> None:
        assert not self.captured, "a context is changed that a graph refers to"

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._changed()
        assert (index, type(stream)) == (0, int)
        assert stream not in self.gpu.runtime.capturing
        if not self.gpu.ok("set_optimization_profile_async"):
            return False
        if self.gpu.kind == "8" and not self.gpu.shares_profile and self.engine.contexts[0] is not self:
            return self.gpu.says("Profile 0 has been chosen by another IExecutionContext.")
        self.profile, self.batch, self._profile_copied = index, 0, False
        self.profiles_chosen += 1
        self.gpu.runtime.queue(stream, self._copy_profile)
        return True

    def _copy_profile(self) -> None:
        self._profile_copied = True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._changed()
        assert type(address) is int
        assert address % 256 == 0
        self.addresses[name] = address
        return self.gpu.ok("set_tensor_address")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._changed()
        assert (name, shape[1:]) == ("images", (*self.gpu.size, 3))
        assert all(isinstance(size, (int, np.integer)) for size in shape)
        if self.profile is None:
            return self.gpu.says("No optimization profile has been chosen for this context.")
        self.batch, self.laid_out = shape[0], False
        return self.gpu.ok("set_input_shape") and self.gpu.profile[0] <= self.batch <= self.gpu.profile[2]

    def execute_async_v3(self, stream: int) -> bool:
        if not self.gpu.ok("execute_async_v3"):
            return False
        if self.batch > self.gpu.enough_for:
            return self.gpu.says("Error Code 2: OutOfMemory (Requested size was 1 bytes.)")
        runtime = self.gpu.runtime
        assert type(stream) is int
        assert self.nvtx_verbosity == Verbosity.NONE
        self.captured = stream in runtime.capturing
        if self.captured and self.gpu.fail == "capture":
            return self.gpu.says("capture said no")
        assert self._profile_copied, "it runs while the profile is still being copied, maybe in another stream"
        if self.memory is None:
            return self.gpu.says("execution context without device memory")
        address, size = self.memory
        assert size >= self.batch * ACTIVATION_BYTES
        # Less memory than the largest batch needs has to be divided again for every shape.
        assert self.laid_out or size >= self.gpu.profile[2] * ACTIVATION_BYTES
        if self.kernels in (Specialization.EAGER, Specialization.LAZY) and self.batch not in self.gpu.compiled:
            assert not self.captured, "kernels are compiled while a graph is captured"
            self.gpu.compiled.append(self.batch)
        batch, addresses = self.batch, dict(self.addresses)
        assert set(addresses) == {"images", "logits", "probabilities", *self.gpu.top}

        def work() -> None:
            runtime.block(address, "device", size)
            first = addresses["images"] not in runtime.written  # a run of whatever lies there, when it is opened
            (self.gpu.first_runs if first else self.gpu.batches).append(batch)
            self._work(batch, addresses)

        runtime.queue(stream, work)
        return True

    def _work(self, batch: int, addresses: dict[str, int]) -> None:
        shape = (batch, *self.gpu.size, 3)
        count = int(np.prod(shape))
        raw = (ctypes.c_uint8 * count).from_address(self.gpu.runtime.block(addresses["images"], "device", count))
        logits = self.gpu.answer(np.frombuffer(raw, np.uint8).reshape(shape)).astype(np.float32)
        if self.kernels == Specialization.NONE:  # kernels for all sizes add in another order
            logits = np.nextafter(logits, np.float32(np.inf))
        exp = np.exp(logits - logits.max(1, keepdims=True))
        results = {"logits": logits, "probabilities": exp / exp.sum(1, keepdims=True)}
        if self.gpu.top:
            best = np.argsort(-results["probabilities"], 1, kind="stable")[:, :2].astype(np.int32)
            top = np.take_along_axis(results["probabilities"], best, 1)
            results |= {"top_probabilities": top, "top_classes": best}
        self.gpu.spoil(results)
        for name, value in results.items():
            value = np.ascontiguousarray(value)
            target = self.gpu.runtime.block(addresses[name], "device", value.nbytes)
            ctypes.memmove(target, value.ctypes.data, value.nbytes)

    def set_device_memory(self, address: int, size: int) -> None:
        self._changed()
        assert (type(address), type(size)) == (int, int)
        assert address % 256 == 0
        largest = self.gpu.profile[2] * ACTIVATION_BYTES
        if self.gpu.kind == "rtx" and size < largest:  # it says so and goes on, as nothing is returned
            self.gpu.says(f"set_device_memory: {size} bytes are less than the {largest} of device_memory_size_v2")
            return
        assert self.laid_out or size >= largest, "less memory than every shape needs, before it was divided for one"
        self.memory = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.gpu.fail != "is_stream_capturable"

    def update_device_memory_size_for_shapes(self) -> int:
        self._changed()
        if self.gpu.fail == "update_device_memory_size_for_shapes":
            return 0
        self.laid_out = True
        return self.batch * ACTIVATION_BYTES

    @property
    def device_memory(self) -> int:
        return self.memory[0] if self.memory else 0

    @device_memory.setter
    def device_memory(self, address: int) -> None:
        """The size of the memory is taken on trust: what was laid out, or what every size needs."""
        assert type(address) is int
        assert address % 256 == 0
        self.memory = (address, (self.batch if self.laid_out else self.gpu.profile[2]) * ACTIVATION_BYTES)
