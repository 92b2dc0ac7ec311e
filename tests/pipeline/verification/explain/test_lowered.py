"""An INT8 file whose activations are lowered is sound as quantize makes it; each of its faults is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.int8.placement import Kept
from pipeline.artifacts.tensor_changes import read_changes, read_corrections, write_changes
from pipeline.verification.checks.rounded import Misfit, Rounded
from pipeline.verification.explain.misfits import explain_misfits, find_misfits
from pipeline.verification.explain.origin_shift import wrong_offsets
from pipeline.verification.explain.quantized import explain_scales
from pipeline.verification.explain.twin import quantized_tensors, run, without_rounding
from tests.pipeline.verification.bottleneck import LOWERED, PIXELS, SOURCE, Made, made_int8

Change = Callable[[Made], None]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return made_int8(tmp_path)


def found_in(made: Made) -> Rounded:
    onnx.save(made.model, made.folder / "candidate.onnx")
    found = find_misfits(made.folder / "candidate.onnx", made.origin, PIXELS)
    assert found is not None
    return found


@pytest.mark.parametrize(("base", "trunk"), [("fp16", "fp32"), ("fp16", "fp16"), ("fp32", "fp32")])
def test_what_quantize_makes_is_sound(tmp_path: Path, base: str, trunk: str) -> None:
    made = made_int8(tmp_path, base, trunk)
    assert made.scales.shifted == LOWERED
    assert found_in(made) == Rounded(SOURCE, 5, 5)


def test_so_is_a_file_with_a_layer_in_float_and_one_with_codes_that_were_moved(tmp_path: Path) -> None:
    assert found_in(made_int8(tmp_path, kept={"reduce/Conv": Kept("fp16", "it costs much")})) == Rounded(SOURCE, 5, 5)
    moved = made_int8(tmp_path, moved=0.05)
    assert found_in(moved) == Rounded(SOURCE, 5, 5)
    (tmp_path / "rounding.json").unlink()
    without = find_misfits(tmp_path / "candidate.onnx", moved.origin, PIXELS)
    assert without is not None
    assert {misfit.cause for misfit in without.misfits} == {"weights"}, "without a record no step is moved by two"


def tensor_of(made: Made, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in made.model.graph.initializer if tensor.name == name)


def node_of(made: Made, name: str) -> onnx.NodeProto:
    return next(node for node in made.model.graph.node if node.name == name)


def set_values(made: Made, name: str, change: Callable[[np.ndarray], object]) -> None:
    tensor = tensor_of(made, name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(values.copy())).astype(values.dtype), name))


def offset_of(made: Made, tensor: str) -> float:
    return float(read_changes(made.folder / "tensors.npz")[tensor].offsets.item())


def forget_in(layer: str, source: str) -> Change:
    """A bias without what makes up for the offset of what its node reads."""

    def change(made: Made) -> None:
        sums = made.weights[f"{layer}/w"].values.sum(axis=(1, 2, 3), dtype=np.float64)
        set_values(made, f"{layer}/b", lambda bias: bias - offset_of(made, source) * sums)

    return change


def sum_unrounded(made: Made) -> None:
    exact = numpy_helper.to_array(next(t for t in made.source.graph.initializer if t.name == "tail/w"))
    changes = read_changes(made.folder / "tensors.npz")
    equal = exact * changes["out"].factors.reshape(1, -1, 1, 1) / changes["tail"].factors.reshape(-1, 1, 1, 1)
    more = (equal - made.weights["tail/w"].values).sum(axis=(1, 2, 3))
    set_values(made, "tail/b", lambda bias: bias + offset_of(made, "out") * more)


def raise_own_bias(made: Made) -> None:
    set_values(made, "stem/b", lambda bias: bias + offset_of(made, "stem_relu"))


def as_relu(made: Made) -> None:
    node = node_of(made, "out/Relu")
    node.op_type = "Relu"
    del node.input[1:]


def halve_scale(made: Made) -> None:
    set_values(made, "reduce_relu/scale", lambda scale: scale / 2)


def move_code(made: Made) -> None:
    def change(codes: np.ndarray) -> np.ndarray:
        codes[0, 0] += -1 if codes[0, 0].item() > 0 else 1
        return codes

    set_values(made, "expand/w/quantized", change)


def scale_of_weights(made: Made) -> None:
    set_values(made, "tail/w/scale", lambda scales: scales * np.where(np.arange(len(scales)) == 2, 1.01, 1))


def border(made: Made) -> None:
    node_of(made, "tail/Conv").attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))


def highest(made: Made) -> None:
    set_values(made, "reduce_relu/Relu/highest", lambda value: 1.0)


def head(made: Made) -> None:
    set_values(made, "dense/b", lambda bias: bias + 10)


def record(**values: object) -> Change:
    """Another record of the first weight's rounding; without it where there are no values."""

    def change(made: Made) -> None:
        path = made.folder / "rounding.json"
        report = json.loads(path.read_text())
        first, *others = report["weights"]
        path.write_text(json.dumps(report | {"weights": [*([first | values] if values else []), *others]}))

    return change


def record_that_excuses(made: Made) -> None:
    """Say that bias correction took away what makes up for the offset."""
    path = made.folder / "tensors.npz"
    changes, corrections = read_changes(path), read_corrections(path)
    forget_in("reduce", "stem_relu")(made)
    sums = made.weights["reduce/w"].values.sum(axis=(1, 2, 3), dtype=np.float64)
    corrections["reduce/Conv"] = corrections["reduce/Conv"] - changes["stem_relu"].offsets * sums
    write_changes(
        path, {n: c.factors for n, c in changes.items()}, {n: c.offsets for n, c in changes.items()}, corrections
    )


FAULTS: list[tuple[Change, str, str, str]] = [
    (forget_in("reduce", "stem_relu"), "weights", "reduce", "of its 8 biases do not follow"),
    (forget_in("expand", "reduce_relu"), "weights", "expand", "of its 12 biases do not follow"),
    (sum_unrounded, "weights", "tail", "of its 8 biases do not follow"),
    (raise_own_bias, "weights", "stem", "12 of its 12 biases do not follow"),
    (record_that_excuses, "weights", "reduce", "biases do not follow"),
    (head, "weights", "dense", "5 of its 5 biases do not follow"),
    (as_relu, "attribute", "out", "as its values are lowered, and it ends at 0"),
    (highest, "attribute", "reduce_relu", "and it ends at 1"),
    (halve_scale, "layer scale", "reduce_relu", "0.5 times the one that quantize recorded"),
    (move_code, "weights", "expand", "the INT8 codes of its weights are not those that quantize recorded"),
    (scale_of_weights, "weights", "tail", "are not those that FP32's need in 1 of 8 output channels (1.01 times)"),
    (border, "padding", "tail", "its border is (1, 1, 1, 1), and that of FP32's none, whose zeros stand for values"),
    (record(), "weights", "stem", "quantize recorded no rounding of its INT8 weights"),
    (record(most_steps=3.0), "weights", "stem", "moved a weight by 3 steps, where 0.75 are the most"),
    (record(method="second_order", most_steps=17.0), "weights", "stem", "where 16 are the most"),
    (record(codes_sha256="0" * 64), "weights", "stem", "not those that quantize recorded"),
]


@pytest.mark.parametrize(("fault", "cause", "layer", "text"), FAULTS)
def test_each_fault_is_named(made: Made, fault: Change, cause: str, layer: str, text: str) -> None:
    fault(made)
    found = found_in(made).misfits
    assert [(misfit.cause, misfit.layer) for misfit in found] == [(cause, layer)], found
    assert text in found[0].text


def test_without_a_record_of_corrections_what_is_forgotten_shows_all_the_same(made: Made) -> None:
    changes = read_changes(made.folder / "tensors.npz")
    source = onnx.load(made.folder / "model.onnx")
    assert wrong_offsets(made.model, source, changes) == []
    forget_in("reduce", "stem_relu")(made)
    (misfit,) = wrong_offsets(made.model, source, changes)
    assert (misfit.cause, misfit.layer) == ("weights", "reduce")


def test_a_file_of_which_nothing_is_recorded_does_not_pass_as_lowered(made: Made) -> None:
    """Without the offsets nothing in the file is what the FP32 file asks for."""
    write_changes(made.folder / "tensors.npz", {}, {})
    assert len(found_in(made).misfits) > 5


@pytest.mark.parametrize("cause", ["attribute", "padding"])
def test_what_is_no_scale_is_explained_as_such(cause: str) -> None:
    misfit = Misfit(cause, "out", "layer 'out': its Relu has to end at -1, and it ends at 0")  # type: ignore[arg-type]
    logits = np.eye(4, dtype=np.float32)
    found = explain_misfits(Rounded(SOURCE, 5, 5, (misfit,)), logits, -logits, "int8")
    assert (found.cause, found.layer, found.settles) == (cause, "out", False)


def test_a_pair_holds_what_its_values_were_before_they_were_lowered(made: Made) -> None:
    subject = made.subject()
    pairs = {pair.tensor: pair for pair in quantized_tensors(made.model, subject.changes)}
    for name in LOWERED:
        assert pairs[name].offset == pytest.approx(128 * pairs[name].scale)
        assert pairs[name].largest == pytest.approx(255 * made.scales.scales[name])
        values = run(without_rounding(made.model), PIXELS[:16], [name])[name]
        assert pairs[name].reach(values) == pytest.approx(pairs[name].largest, rel=0.02)
        assert not pairs[name].saturated(values).any()
    assert pairs["nchw"].offset == 0


def test_a_lowered_scale_that_cuts_off_is_named_by_repair(tmp_path: Path) -> None:
    """A larger scale needs another offset, which the repair takes into account."""
    exact = made_int8(tmp_path).model
    expected = next(iter(run(without_rounding(exact), PIXELS).values()))
    made = made_int8(tmp_path, scale_of={"reduce_relu": 0.15}, corrected=False)
    received = next(iter(run(made.model, PIXELS).values()))
    (found,) = explain_scales(made.model, PIXELS, expected, received, None, made.subject().changes)
    assert (found.cause, found.layer) == ("saturation", "reduce_relu")
