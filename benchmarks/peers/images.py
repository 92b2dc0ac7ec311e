"""The calibration images, as the model and the quantizers read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from tqdm import tqdm

from export.errors import ProjectError


class PixelReader:
    """Calibration images in the order of their numbers, as both tools want to read them.

    Args:
        name: the model's input.
        pixels: array (N, ...) of that input's type.
        batch: images a step.
        label: the progress bar's name.
    """

    def __init__(self, name: str, pixels: np.ndarray, batch: int, label: str) -> None:
        self.name, self.pixels, self.batch = name, pixels, batch
        self.position, self.end = 0, len(pixels)
        self.progress = tqdm(total=len(pixels), desc=f"  {label}", unit="img", mininterval=1.0)

    def __len__(self) -> int:
        return len(self.pixels)

    def get_first(self) -> dict[str, np.ndarray]:
        """Returns the first step without going forward."""
        return {self.name: self.pixels[: self.batch]}

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next step, None at the end."""
        rows = self.pixels[self.position : min(self.position + self.batch, self.end)]
        if not len(rows):
            return None
        self.position += len(rows)
        self.progress.update(len(rows))
        return {self.name: rows}

    def __iter__(self) -> PixelReader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        step = self.get_next()
        if step is None:
            raise StopIteration
        return step

    def rewind(self) -> None:
        """Start again."""
        self.set_range(0, len(self.pixels))

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go to the images start_index up to end_index, the last not included."""
        self.position, self.end = start_index, min(end_index, len(self.pixels))


def read_images(path: Path, model: onnx.ModelProto, limit: int, seed: int) -> tuple[str, np.ndarray]:
    """Read the calibration images: a seeded choice of `limit` of them.

    Args:
        path: .npz file with the array ``pixels``.
        model: the model that shall be calibrated; it has one input.
        limit: number of images, or all where there are fewer.
        seed: of the choice.

    Returns:
        tuple: the name of the model's input, array (n, ...) of its type.

    Raises:
        ProjectError: the file or its array do not fit the model.
    """
    constants = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    if len(inputs) != 1:
        raise ProjectError(
            f"Expected a model with one input. Received: {[one.name for one in inputs]}. Export it again."
        )
    kind = inputs[0].type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = [one.dim_value if one.HasField("dim_value") else None for one in kind.shape.dim]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels = arrays["pixels"]
    except (OSError, ValueError, KeyError) as error:
        raise ProjectError(
            f"Expected an .npz file with the array 'pixels'. Received: {path} ({error}). "
            "Write it with numpy.savez(path, pixels=array)."
        ) from error
    fits = pixels.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape[1:], pixels.shape[1:]))
    if pixels.dtype != dtype or not fits or not len(pixels):
        raise ProjectError(
            f"Expected pixels of type {dtype} and shape (images, {', '.join(map(str, shape[1:]))}) for the input "
            f"{inputs[0].name!r}. Received: {pixels.dtype} {pixels.shape} in {path}. "
            "Save the images as the model reads them."
        )
    chosen = np.random.default_rng(seed).permutation(len(pixels))[:limit]
    return inputs[0].name, pixels[chosen]
