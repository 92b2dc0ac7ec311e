"""Runs an engine of any graph once, such as a part of a model; see `runner` for classifiers, which run often.

Python 3.10 syntax, numpy alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from export.errors import RunnerError
from export.tensorrt.library import TensorRT
from pipeline.runners.cuda.api import CudaApi
from pipeline.runners.cuda.resources import DeviceBuffer, PinnedBuffer, Stream

log = logging.getLogger(__name__)


def run_part(
    trt: TensorRT, cuda: CudaApi, plan: Any, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Load a plan on the current device, run it, and release everything.

    Args:
        trt: The library that built it.
        cuda: The CUDA that runs it.
        plan: See `export.tensorrt.part.build_part`.
        inputs: Values by name, in the types and shapes that it was built for.
        outputs: dtype by name.

    Returns:
        dict[str, np.ndarray]: The outputs; their first dimension is that of the inputs where the engine leaves it open.

    Raises:
        RunnerError: TensorRT or CUDA failed; with TensorRT's messages.
    """
    logger = trt.logger()

    def must(done: object, doing: str) -> Any:
        if done is None or done is False:
            raise RunnerError(f"Expected TensorRT to succeed at {doing} of a graph. Received: {logger.lines()}.")
        return done

    runtime = trt.module.Runtime(logger)
    engine = must(runtime.deserialize_cuda_engine(plan), "loading the engine")
    batch = len(next(iter(inputs.values())))
    with ExitStack() as stack:
        stream = stack.enter_context(Stream(cuda))

        def buffers(shape: tuple[int, ...], dtype: Any) -> tuple[PinnedBuffer, DeviceBuffer]:
            host = stack.enter_context(PinnedBuffer(cuda, shape, dtype))
            return host, stack.enter_context(DeviceBuffer(cuda, max(host.nbytes, 1)))

        needed = int(engine.device_memory_size_v2 if trt.memory_size_v2 else engine.device_memory_size)
        memory = stack.enter_context(DeviceBuffer(cuda, max(needed, 1)))
        given = {name: buffers(value.shape, value.dtype) for name, value in inputs.items()}
        results = {}
        for name, dtype in outputs.items():
            shape = (batch if size < 0 else int(size) for size in tuple(engine.get_tensor_shape(name)))
            results[name] = buffers(tuple(shape), dtype)
        stack.callback(_settle, stream)  # first of all at the end, as work in the stream uses the buffers
        context = must(trt.context_without_memory(engine), "creating a context")
        context.nvtx_verbosity = trt.member("ProfilingVerbosity", "NONE")
        must(context.set_optimization_profile_async(0, int(stream)), "choosing the profile")
        stream.synchronize()
        if trt.memory_with_size:
            context.set_device_memory(int(memory), memory.nbytes)
        else:
            context.device_memory = int(memory)
        for name, (_, device) in (*given.items(), *results.items()):
            must(context.set_tensor_address(name, int(device)), f"taking the address of {name}")
        for name, (host, device) in given.items():
            host.array[...] = inputs[name]
            must(context.set_input_shape(name, inputs[name].shape), f"taking the shape of {name}")
            device.upload(host.handle, host.nbytes, stream)
        must(context.execute_async_v3(int(stream)), "running")
        for host, device in results.values():
            device.download(host.handle, host.nbytes, stream)
        stream.synchronize()
        values = {name: host.array.copy() for name, (host, _) in results.items()}
        del context  # before its memory
    return values


def _settle(stream: Stream) -> None:
    """Wait for the work of a stream; a failure of it is logged, as it would hide the error that led here."""
    try:
        stream.synchronize()
    except RunnerError as error:
        log.debug("%s", error)
