"""What convolutions read at random places of their outputs, as INT8 codes, and the second moments of it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from export.int8.scales import SHIFT_STEPS
from export.onnx_passes.graph import attribute

POSITIONS = 16  # places of the output that are taken of each image
_ROWS = 4096  # samples that are float64 at once


@dataclass(frozen=True)
class ConvInput:
    """The quantized input of a Conv with any number of axes, and what one place of the output reads of it.

    Args:
        node: Name of the Conv.
        codes: Name of the int8 tensor (N, channels, ...) whose code c stands for ``scale * (c - zero)``.
        scale: Its scale.
        zero: The code of 0, which pads the border: 0, or -128 of a shifted tensor.
        groups: Number of groups of the Conv.
        channels: Of the input.
        kernel: Size of the kernel along each axis.
        strides: Along each axis.
        dilations: Along each axis.
        pads: Before the input along each axis, then behind it; empty where `automatic` tells them.
        automatic: The attribute auto_pad.
    """

    node: str
    codes: str
    scale: float
    zero: int
    groups: int
    channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    automatic: str

    @classmethod
    def of(cls, conv: onnx.NodeProto, weight: onnx.TensorProto, codes: str, scale: float, shifted: bool) -> ConvInput:
        """Return the input of a Conv with constant weights (out, in / groups, ...)."""
        kernel = tuple(weight.dims[2:])
        groups, automatic = attribute(conv, "group", 1), attribute(conv, "auto_pad", b"NOTSET").decode()
        ones, zeros = [1] * len(kernel), [0] * 2 * len(kernel)
        return cls(
            node=conv.name,
            codes=codes,
            scale=scale,
            zero=-SHIFT_STEPS if shifted else 0,
            groups=groups,
            channels=groups * weight.dims[1],
            kernel=kernel,
            strides=tuple(attribute(conv, "strides", ones)),
            dilations=tuple(attribute(conv, "dilations", ones)),
            pads=() if automatic.startswith("SAME") else tuple(attribute(conv, "pads", zeros)),
            automatic=automatic,
        )

    @property
    def values(self) -> int:
        """The number of values that one place of the output reads, of all groups."""
        return self.channels * math.prod(self.kernel)

    def output(self, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the size of the output and the padding before the input, along each axis of an input."""
        outputs: list[int] = []
        before: list[int] = []
        for axis, size in enumerate(sizes):
            stride, reach = self.strides[axis], self.dilations[axis] * (self.kernel[axis] - 1) + 1
            if self.pads:
                first, last = self.pads[axis], self.pads[axis + len(sizes)]
                outputs.append((size + first + last - reach) // stride + 1)
            else:
                outputs.append(-(-size // stride))
                border = max((outputs[-1] - 1) * stride + reach - size, 0)
                first = border // 2 if self.automatic == "SAME_UPPER" else border - border // 2
            before.append(first)
        return outputs, before

    def read(self, codes: np.ndarray, places: Sequence[np.ndarray], before: Sequence[int]) -> np.ndarray:
        """Return what some places of the output read.

        Args:
            codes: int8 (N, channels, ...).
            places: For each axis, int64 (N, places).
            before: Padding before the input along each axis.

        Returns:
            int8 (N, places, `values`), in the order of the weights of an output, group by group.
        """
        axes = len(self.kernel)
        index: list[np.ndarray | slice] = [np.arange(len(codes)).reshape(-1, *[1] * (axes + 1)), slice(None)]
        inside = np.ones([1] * (axes + 2), bool)
        for axis, size in enumerate(codes.shape[2:]):
            offsets = np.arange(self.kernel[axis]) * self.dilations[axis] - before[axis]
            along = places[axis][..., None] * self.strides[axis] + offsets
            along = along.reshape(*along.shape[:2], *[-1 if other == axis else 1 for other in range(axes)])
            inside = inside & (along >= 0) & (along < size)
            index.append(np.clip(along, 0, size - 1))
        found = codes[tuple(index)]  # (N, places, ..., channels)
        found[~np.broadcast_to(inside, found.shape[:-1])] = self.zero
        return np.ascontiguousarray(np.moveaxis(found, -1, 2)).reshape(*found.shape[:2], -1)


class Samples:
    """What some Convs read of some images, at `POSITIONS` places of the output of each image and Conv.

    The places follow from the seed, the Conv's name and the image's number alone. A Conv that reads not one map for
    each image, as one of patches that were folded into the first axis, is in `refused`, and has no samples.

    Args:
        inputs: The Convs' inputs.
        images: The most images that will be added.
        seed: Of the random places.
    """

    def __init__(self, inputs: Sequence[ConvInput], images: int, seed: int) -> None:
        self._inputs = {found.node: found for found in inputs}
        self._images, self._seed = images, seed
        self._codes: dict[str, np.ndarray] = {}
        self.refused: set[str] = set()
        self.seen = 0

    def add(self, count: int, values: Mapping[str, np.ndarray]) -> None:
        """Take what is read of the next images, from the int8 tensors by name."""
        for name, source in self._inputs.items():
            codes = values[source.codes]
            if len(codes) != count:
                self.refused.add(name)
                continue
            outputs, before = source.output(codes.shape[2:])
            places = np.unravel_index(
                [self._places(name, self.seen + i, math.prod(outputs)) for i in range(count)], outputs
            )
            found = source.read(codes, places, before)
            if name not in self._codes:
                self._codes[name] = np.empty((self._images, *found.shape[1:]), np.int8)
            self._codes[name][self.seen : self.seen + count] = found
        self.seen += count

    def _places(self, name: str, image: int, number: int) -> np.ndarray:
        generator = np.random.default_rng([self._seed, zlib.crc32(name.encode()), image])
        return generator.choice(number, min(number, POSITIONS), replace=False)

    def take(self, node: str) -> np.ndarray:
        """Return the sum of x x^T over what each group of a Conv reads, and forget its samples.

        The sums are of whole numbers below 2^53 before they are scaled, hence exact in any order.

        Returns:
            float64 (groups, d, d), where d is the number of weights of an output.
        """
        source = self._inputs[node]
        rows = self._codes.pop(node)[: self.seen].reshape(-1, source.groups, source.values // source.groups)
        total = np.zeros((source.groups, rows.shape[2], rows.shape[2]))
        for start in range(0, len(rows), _ROWS):
            x = rows[start : start + _ROWS].astype(np.float64) - source.zero
            if source.groups == 1:  # of a matrix with itself, half of the work
                total[0] += x[:, 0].T @ x[:, 0]
            else:
                total += x.transpose(1, 2, 0) @ x.transpose(1, 0, 2)
        total *= source.scale**2
        return total


def samples_bytes(source: ConvInput, images: int) -> int:
    """Return the most memory that the samples of a Conv take."""
    return images * POSITIONS * source.values
