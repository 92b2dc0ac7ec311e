"""Classifies what lies on the GPU already, for `TensorRTRunner.infer_device`. Python 3.10 syntax, numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from export.sidecar import INPUT, OUTPUTS
from pipeline.errors import RunnerError
from pipeline.runners.device_arrays import DeviceArray, device_array
from pipeline.runners.opened import OpenEngine
from pipeline.runners.ring import Tensor

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
