"""The runner of an ONNX file that this project did not export. Python 3.10 syntax; libraries are imported inside.

Such a file has any names, takes pixels or preprocessed images in either layout, may have a fixed batch size, and gives
logits or probabilities, perhaps beside other outputs. What the shapes leave open is found by running an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import RunnerError, UnfitError
from export.ort_session import open_session
from export.tensorrt.sidecar import OUTPUTS, Precision
from export.wire_format import refuse_external_data
from export.words import count, listed
from pipeline.runners.base import Outputs, Top, check_pixels, softmax, split_batches, top_k_of

TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
FLOATS = ("tensor(float)", "tensor(float16)", "tensor(double)")
INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QuantizeLinear")
_AT_ONCE = 256
_PROBED = 3  # images that a file is tried with
_SUM = 5e-3  # by which the sum of a row of FP16 probabilities may miss 1


class ForeignRunner:
    """Runs a classifier from an ONNX file of any origin on ONNX Runtime's CPU.

    Args:
        path: the file.
        size: height and width of the images in pixels.
        classes: number of classes. Defaults to None: that of the only output that can be one.
        preprocess: from uint8 NHWC RGB pixels to float32 NHWC, for a file that takes floats. Defaults to None: such a
            file takes no pixels.
        precision: "fp32", "fp16" or "int8". INT8 runs without graph optimizations, as this project's own files do.
            Defaults to "fp32".

    Attributes:
        dtype: of an open runner: the type of the input, uint8, float32 or float16.
        notes: of an open runner: what a reader must know of how it is run, as sentences without a full stop.
        log_floor: of an open runner whose output is probabilities: the logarithm of the smallest one that its type
            holds. `infer` then gives logarithms as logits. None: it gives logits.
        channels_first: of an open runner: whether the input is NCHW.
        channels: of an open runner: of the input, 3 or 1.
        output: of an open runner: name of the output with a value for each class.
    """

    backend = "onnxruntime"
    graph_top_k = 0
    max_batch = _AT_ONCE
    metadata: Mapping[str, Any] | None = None

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        *,
        classes: int | None = None,
        preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
        precision: str = "fp32",
    ) -> None:
        self.path = path
        self.size = size
        self.precision = precision
        self.classes = classes or 0
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.notes: tuple[str, ...] = ()
        self.log_floor: float | None = None
        self._preprocess = preprocess
        self._session: Any = None
        self.channels_first = False
        self.channels = 3
        self._fixed: int | None = None
        self.output = ""

    def __enter__(self) -> ForeignRunner:
        refuse_external_data(self.path)
        try:
            self._session = open_session(str(self.path), exact=self.precision == "int8")
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise UnfitError(
                f"Expected an ONNX model that ONNX Runtime loads. Received: {self.path}: {str(error).strip()}. Export "
                "it again, with operators and an opset that this ONNX Runtime has."
            ) from error
        try:
            self._check_outputs()
            self._read_input()
            self._choose_output(self._probe())
        except BaseException:
            self._session = None
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._session = None

    def infer(self, pixels: np.ndarray) -> Outputs:
        """Classify uint8 NHWC RGB pixels, at least one image.

        Raises:
            RunnerError: wrong pixels, a closed runner, a file that takes floats without ``preprocess``, or a failure.
        """
        check_pixels(pixels, self.size)
        rows = self.scores(self.inputs(pixels))
        if self.log_floor is None:
            return Outputs(rows, softmax(rows))
        return Outputs(log_probabilities(rows, self.log_floor), rows)

    def top(self, pixels: np.ndarray, k: int) -> Top:
        """Return the best k classes of each image."""
        return top_k_of(self.infer(pixels).probabilities, k)

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        """Run images of the file's own type and return what it gives for them.

        Args:
            inputs: (N, height, width, channels), of the type `dtype` or one that rounds to it.

        Returns:
            np.ndarray: float32 (N, classes), logits or probabilities.

        Raises:
            RunnerError: a closed runner, or a failure of the backend.
        """
        rows = np.concatenate([self._run(piece)[self.output] for piece in split_batches(inputs, self._at_once())])
        return rows.reshape(len(rows), -1).astype(np.float32, copy=False)

    def _at_once(self) -> int:
        return self._fixed or self.max_batch

    def inputs(self, pixels: np.ndarray) -> np.ndarray:
        """Return uint8 NHWC RGB pixels as `scores` takes them.

        Raises:
            RunnerError: the file takes floats, and there is no ``preprocess``.
        """
        if self.dtype == np.uint8:
            return pixels[..., : self.channels]
        if self._preprocess is None:
            raise RunnerError(
                f"Expected preprocessing for {self.path}, which takes {self.dtype}. Received: uint8 pixels alone. "
                "Say how the model's images are preprocessed, or hand in preprocessed images."
            )
        return self._preprocess(pixels)[..., : self.channels]

    def feed(self, inputs: np.ndarray) -> np.ndarray:
        """Return images that `scores` takes in the layout, type and, where it is fixed, batch size of the file."""
        if self._fixed is not None and len(inputs) < self._fixed:
            inputs = np.concatenate([inputs, np.repeat(inputs[-1:], self._fixed - len(inputs), axis=0)])
        values = inputs.transpose(0, 3, 1, 2) if self.channels_first else inputs
        return np.ascontiguousarray(values, dtype=self.dtype)

    def _run(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run at most `_at_once` images; a smaller batch is filled up with its last image where the size is fixed."""
        if self._session is None:
            raise RunnerError("Expected an open runner: use it in a with block.")
        number, fed = len(inputs), self.feed(inputs)
        names = [output.name for output in self._session.get_outputs() if output.type in FLOATS]
        try:
            results = self._session.run(names, {self._session.get_inputs()[0].name: fed})
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise RunnerError(
                f"Expected {self.path} to run a batch of {len(fed)}. Received: {str(error).strip()}"
            ) from error
        rows = {name: np.asarray(value) for name, value in zip(names, results)}
        if self.output and len(rows[self.output]) != len(fed):
            raise RunnerError(
                f"Expected a row for each of {count(len(fed), 'image')} from {self.path}. Received: {self.output} "
                f"of shape {rows[self.output].shape}. Export it again with a free batch size."
            )
        return {name: value[:number] if value.ndim else value for name, value in rows.items()}

    def _read_input(self) -> None:
        """Find type, batch size and, as far as the shape tells, layout of the input."""
        inputs = self._session.get_inputs()
        described = listed(f"{one.name}: {one.type} {one.shape}" for one in inputs)
        if len(inputs) != 1 or inputs[0].type not in TYPES or len(inputs[0].shape) != 4:
            raise UnfitError(
                f"Expected one input of images, uint8, float32 or float16 of four dimensions. Received: {described} in "
                f"{self.path}. Export the classifier alone."
            )
        self.dtype = np.dtype(TYPES[inputs[0].type])
        batch, *shape = (side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape)
        self._fixed = batch
        height, width = self.size
        fits = [
            (first, channels)
            for first in (False, True)
            for channels in (3, 1)
            for form in [(channels, height, width) if first else (height, width, channels)]
            if all(there in (None, asked) for there, asked in zip(shape, form))
        ]
        if not fits:
            raise UnfitError(
                f"Expected an input of {height}x{width} images, in NHWC or NCHW. Received: {described} in {self.path}. "
                "Compare it with the model that it was made from, or export it again."
            )
        layouts = {first for first, _ in fits}
        self.channels_first, self.channels = fits[0]
        if len(fits) == 1 or (len(layouts) == 1 and None not in shape):
            return
        for self.channels_first, self.channels in fits:  # its shape is free: the graph itself tells
            try:
                self._probe()
                return
            except RunnerError as error:
                failure = error
        raise failure

    def _check_outputs(self) -> None:
        """Refuse a file without a tensor of floats, such as one whose classes and scores are sequences."""
        outputs = self._session.get_outputs()
        if not any(output.type in FLOATS for output in outputs):
            described = listed(f"{one.name}: {one.type}" for one in outputs)
            raise UnfitError(
                f"Expected an output of floats, a value for each class. Received: {described} in {self.path}. Export "
                "the classifier's scores as a tensor (for scikit-learn's converter: without ZipMap)."
            )

    def _probe(self) -> dict[str, np.ndarray]:
        """Run noise as images, as many as the file takes at once if that is fixed."""
        shape = (self._fixed or _PROBED, *self.size, self.channels)
        noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        if self.dtype == np.uint8:
            return self._run(noise)
        return self._run((noise.astype(np.float32) - 128) / 64)  # of the size of preprocessed pixels of most modes

    def _choose_output(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Choose the output with a value for each class: of logits and their softmax the logits."""
        images = self._fixed or _PROBED
        rows = {
            name: values.reshape(images, -1)
            for name, values in outputs.items()
            if values.ndim >= 2 and len(values) == images and values.size
        }
        fits = {name: row for name, row in rows.items() if row.shape[1] == (self.classes or row.shape[1]) > 1}
        if set(OUTPUTS) <= fits.keys():  # an export of this project, whose best classes may be as many as its classes
            fits = {name: fits[name] for name in OUTPUTS}
        logits = {name: row for name, row in fits.items() if not are_probabilities(row)}
        if len(fits) == 2 and len(logits) == 1:
            ((name, values),) = logits.items()
            (others,) = (row for other, row in fits.items() if other != name)
            fits = logits if np.allclose(softmax(values), others, atol=1e-2) else fits
        if len(fits) != 1:
            shapes = listed(f"{name} {values.shape}" for name, values in outputs.items())
            asked = f"with {self.classes} values for each image" if self.classes else "that can be the classes"
            mixed = any(len(values) != images for values in outputs.values() if values.ndim)
            raise (RunnerError if mixed else UnfitError)(
                f"Expected one output {asked}, or logits and their softmax. Received for {count(images, 'image')}: "
                f"{shapes} from {self.path}. Export it with a free batch size and the classifier's output alone."
            )
        ((self.output, values),) = fits.items()
        self.classes = values.shape[1]
        notes = []
        if self._fixed is not None:
            one = ", so images run one by one" if self._fixed == 1 else ""
            notes.append(f"its batch size is fixed to {self._fixed}{one}")
        if self.output not in logits:
            self.log_floor = float(np.log(np.finfo(values.dtype).tiny))
            notes.append("it gives probabilities, so logarithms of probabilities are compared")
        self.notes = tuple(notes)


def are_probabilities(rows: np.ndarray) -> bool:
    """Return whether rows (N, C) are probabilities: none negative, sums of 1; rows that are not finite do not count."""
    finite = rows[np.isfinite(rows).all(axis=1)].astype(np.float64)
    return bool(len(finite) and (finite >= 0).all() and np.allclose(finite.sum(axis=1), 1, atol=_SUM))


def log_probabilities(rows: np.ndarray, floor: float) -> np.ndarray:
    """Return the logarithms of probabilities (N, C), float32, none below ``floor``; NaN stays."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.maximum(np.log(rows), floor), np.float32)


def log_softmax(logits: np.ndarray, floor: float) -> np.ndarray:
    """Return the logarithms of the softmax of (N, C) logits, float32, none below ``floor``."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.asarray(np.maximum(logarithms, floor), np.float32)


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file says of itself.

    Attributes:
        path: where it is.
        precision: "int8" with Q/DQ pairs or integer operators, else "fp16" with an FP16 weight or cast, else "fp32".
        size: height and width of the images that it takes; None where its shape leaves them open.
    """

    path: Path
    precision: Precision
    size: tuple[int, int] | None


def read_onnx_file(path: Path) -> OnnxFile:
    """Read what an ONNX file says of itself.

    Raises:
        ProjectError: it is no ONNX file, or keeps weights in other files.
    """
    import onnx

    from export.fp16.convert import has_half

    refuse_external_data(path)
    model = onnx.load(str(path))
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    integers = any(node.op_type in INTEGER_OPERATORS for node in nodes)
    return OnnxFile(path, "int8" if integers else "fp16" if has_half(model) else "fp32", _size_of(model))


def _size_of(model: Any) -> tuple[int, int] | None:
    weights = {weight.name for weight in model.graph.initializer}
    for one in model.graph.input:
        sides = [side.dim_value for side in one.type.tensor_type.shape.dim]
        if one.name not in weights and len(sides) == 4:
            height, width = sides[2:] if sides[1] in (1, 3) and sides[3] not in (1, 3) else sides[1:3]
            return (height, width) if height and width else None
    return None
