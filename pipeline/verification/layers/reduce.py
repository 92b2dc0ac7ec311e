"""Shrinks a graph to the smallest part that still gives wrong values, each part fed with reference values.

The method is delta debugging (Zeller and Hildebrandt, 2002) on a graph: a part lies between tensors whose reference
values are known, so every part can be judged alone. Bisection along the depth finds where a part has to begin and to
end; then tensors inside it become its inputs or its output as long as it still fails; last go nodes of constants, and
images. What is left passes, or has no reference value to be held against, as soon as one more node is taken away.

The judge decides what runs a part: ONNX Runtime (`judge_on_cpu`), or a TensorRT that builds an engine of it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from export.metrics.distances import sqnr_db
from export.onnx_passes.cut import extract, with_outputs
from export.onnx_passes.graph import constants, inputs_of, topological_sort
from export.ort_session import open_session
from pipeline.terminal.console import progress_bar

log = logging.getLogger(__name__)

Values = Mapping[str, np.ndarray]
# A part, its inputs, the values expected of its outputs -> what is wrong with those that it gives; "" if nothing is,
# or if it cannot be run.
Judge = Callable[[ModelProto, Values, Values], str]
SECONDS = 300.0  # after which no further part is tried
_SAME_VALUES = {"Cast", "Identity", "QuantizeLinear", "DequantizeLinear"}  # but for rounding


@dataclass(frozen=True)
class Part:
    """A part of a graph that fails.

    Attributes:
        model: The part as a model; inputs and outputs have the names that they have in the whole graph.
        inputs: Values by name, in the types of the model.
        expected: Reference values of the outputs by name, float32.
        why: What is wrong with its outputs, as a sentence.
        minimal: Whether it was shrunk to the end; False where the time was up before.
    """

    model: ModelProto
    inputs: Values
    expected: Values
    why: str
    minimal: bool = True


def judge_on_cpu(threshold_db: float) -> Judge:
    """Return a judge that runs a part in ONNX Runtime, without optimizations.

    Args:
        threshold_db: SQNR below which an output is wrong.
    """

    def judge(part: ModelProto, inputs: Values, expected: Values) -> str:
        try:
            session = open_session(part, exact=True, log_severity=4)
            given = session.run(list(expected), dict(inputs))
        except (
            Exception
        ) as error:  # ONNX Runtime has no root of its errors; a part that cannot run shows no wrong value
            log.debug("a part does not run: %s", error)
            return ""
        return what_is_wrong(dict(zip(expected, given)), expected, threshold_db)

    return judge


def what_is_wrong(given: Values, expected: Values, threshold_db: float) -> str:
    """Return in a sentence what is wrong with values; "" if nothing is.

    Args:
        given: Values by name.
        expected: Reference values of the same names and shapes.
        threshold_db: SQNR below which a value is wrong.
    """
    for name, reference in expected.items():
        value = given[name].astype(np.float64)
        if value.shape != reference.shape:
            return f"{name} has the shape {value.shape}, and {reference.shape} is expected"
        if bad := int(np.sum(~np.isfinite(value))):
            return f"{name} has {bad} values of {value.size} that are NaN or infinite; all are finite in the reference"
        sqnr = sqnr_db(reference, value)
        if sqnr < threshold_db:
            most, largest = np.abs(value - reference).max(), np.abs(reference).max()
            return (
                f"{name} has an SQNR of {sqnr:.1f} dB against the reference, at least {threshold_db:.1f} dB is asked "
                f"for; its largest difference is {most:.3g}, and the largest value of the reference {largest:.3g}"
            )
    return ""


def with_equal_values(model: ModelProto, known: Values) -> dict[str, np.ndarray]:
    """Return known values, and those that equal them but for rounding: behind Q/DQ pairs, around casts."""
    result = dict(known)
    for node in model.graph.node:
        if node.op_type in _SAME_VALUES and node.input[0] in result:
            result.setdefault(node.output[0], result[node.input[0]])
    for node in reversed(model.graph.node):
        if node.op_type in ("Cast", "Identity") and node.output[0] in result:
            result.setdefault(node.input[0], result[node.output[0]])
    # Integers hold a value over its scale: a pair is judged as one, at its end.
    integers = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    return {name: value for name, value in result.items() if name not in integers or name in known}


def reduce_graph(
    model: ModelProto, known: Values, judge: Judge, end: str = "", seconds: float = SECONDS, description: str = ""
) -> Part | None:
    """Find the smallest part of a model that still fails.

    Args:
        model: The whole graph; its nodes are in topological order.
        known: Reference values by tensor, of the same images; those of the graph's inputs among them.
        judge: Runs a part and tells what is wrong.
        end: Tensor whose own computation fails. Defaults to "": found by bisection, from the last known tensor.
        seconds: Time after which the smallest part so far is returned. Defaults to `SECONDS`.
        description: Text before the progress bar. Defaults to "": none.

    Returns:
        Part | None: None where nothing fails when it is fed with reference values.
    """
    with progress_bar(desc=f"  {description}", unit="part", disable=None if description else True) as bar:
        search = _Search(model, with_equal_values(model, known), judge, time.monotonic() + seconds, bar.update)
        part = search.bisect(end)
        if part is None:
            return None
        for smaller in (search.shrink, search.fold, search.take_one_image):
            part = smaller(part)
        return replace(part, minimal=not search.time_is_up)


@dataclass
class _Search:
    model: ModelProto
    known: dict[str, np.ndarray]
    judge: Judge
    deadline: float
    tried: Callable[[], object]
    time_is_up: bool = False

    def __post_init__(self) -> None:
        self.sources = [info.name for info in self.model.graph.input if info.name not in constants(self.model.graph)]
        fixed = _fixed(self.model)
        written = [name for node in self.model.graph.node for name in node.output]
        self.order = [name for name in written if name in self.known and name not in fixed]

    def bisect(self, end: str) -> Part | None:
        """Return a failing part with the earliest end and the latest beginning that bisection finds."""
        if not end:
            if not self.order or not self._fails(0, self.order[-1]):
                return None
            last = _first(0, len(self.order) - 1, lambda at: self._fails(0, self.order[at]) is not None)
            end = self.order[last]
        last = self.order.index(end)
        if part := self._fails(last, end):
            return part
        if not self._fails(0, end):
            return None
        # With inputs from `order[:begin]` it fails at 0, and passes at `last`.
        return self._fails(_first(1, last, lambda begin: self._fails(begin, end) is None) - 1, end)

    def _fails(self, begin: int, end: str) -> Part | None:
        """Return the part from the first known tensors, or what lies nearest to the end of these, if it fails."""
        return self._try(extract(self.model, [*self.sources, *self.order[:begin]], [end]))

    def shrink(self, part: Part) -> Part:
        """Make tensors inside the part its inputs, or its output, until none of them can be."""
        while smaller := next((made for made in map(self._try, self._smaller(part)) if made is not None), None):
            part = smaller
        return part

    def _smaller(self, part: Part) -> Iterator[ModelProto]:
        """Yield the parts of a part with fewer nodes, the latest beginnings first."""
        (end,) = part.expected
        written = {name for node in part.model.graph.node for name in node.output}
        inside = [name for name in self.order if name in written and name != end]
        for name in reversed(inside):
            yield extract(part.model, [*part.inputs, name], [end])
        for name in inside:
            yield with_outputs(part.model, [name])

    def fold(self, part: Part) -> Part:
        """Compute the nodes that read constants alone, such as Q/DQ pairs of weights, if it still fails."""
        return self._try(_folded(part.model)) or part

    def take_one_image(self, part: Part) -> Part:
        """Return the part with the first image that fails alone; as it was where none does."""
        count = len(next(iter(part.expected.values())))
        rows = {name: value for name, value in part.inputs.items() if value.ndim and len(value) == count}
        if count == 1 or len(rows) < len(part.inputs):
            return part
        for at in range(count):
            inputs = {name: value[at : at + 1] for name, value in rows.items()}
            expected = {name: value[at : at + 1] for name, value in part.expected.items()}
            if why := self._judge(part.model, inputs, expected):
                return Part(part.model, inputs, expected, why)
        return part

    def _try(self, model: ModelProto) -> Part | None:
        """Return a model with the known values of its inputs and outputs if it fails."""
        inputs = {}
        for info in model.graph.input:
            dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            with np.errstate(over="ignore"):
                inputs[info.name] = self.known[info.name].astype(dtype)
            if dtype.kind == "f" and not np.isfinite(inputs[info.name]).all():
                return None  # the type of the file does not hold the reference: the fault is before this tensor
        expected = {info.name: self.known[info.name].astype(np.float32) for info in model.graph.output}
        why = self._judge(model, inputs, expected)
        return Part(model, inputs, expected, why) if why else None

    def _judge(self, model: ModelProto, inputs: Values, expected: Values) -> str:
        if time.monotonic() > self.deadline:
            self.time_is_up = True
            return ""
        self.tried()
        return self.judge(model, inputs, expected)


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the first number from `low` to `high` for which something holds; it holds for `high`."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _fixed(model: ModelProto) -> set[str]:
    """Return the tensors that nodes compute from initializers alone."""
    weights, fixed = set(constants(model.graph)), set[str]()
    for node in model.graph.node:
        if all(name in weights or name in fixed for name in inputs_of(node)):
            fixed |= set(node.output)
    return fixed


def _folded(model: ModelProto) -> ModelProto:
    """Return the model with an initializer for each tensor that is computed from initializers alone."""
    fixed = _fixed(model)
    kept = [node for node in model.graph.node if not fixed & set(node.output)]
    made = sorted({name for node in kept for name in inputs_of(node)} & fixed)
    if not made:
        return model
    values = open_session(with_outputs(model, made), exact=True).run(made, {})
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(kept)
    result.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in zip(made, values))
    return topological_sort(result)
