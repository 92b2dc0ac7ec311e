"""A fault is planted in one node of many; what is left of the graph is that node, as files that show it."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.onnx_passes.cut import with_outputs
from export.onnx_passes.graph import copy_model
from export.ort_session import open_session
from pipeline.verification.layers.reduce import judge_on_cpu, reduce_graph, what_is_wrong
from pipeline.verification.layers.reduced_files import write_reduced
from tests.tiny_onnx import classifier, pixels


def values(model, images):
    """What every node gives, and the images."""
    names = [name for node in model.graph.node for name in node.output]
    given = open_session(with_outputs(model, names), exact=True).run(names, {"images": images})
    return {"images": images, **{name: value.astype(np.float32) for name, value in zip(names, given)}}


def changed(model, name, change):
    """The model with a weight changed."""
    result = copy_model(model)
    (tensor,) = (one for one in result.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    return result


def operators(part):
    return [node.op_type for node in part.model.graph.node]


DEEP = classifier(more_convolutions=12)
IMAGES = pixels(3)


def test_a_good_graph_has_no_part_that_fails():
    assert reduce_graph(DEEP, values(DEEP, IMAGES), judge_on_cpu(60)) is None


@pytest.mark.parametrize("at", ["", "1", "7", "12"])
def test_a_wrong_convolution_of_many_is_all_that_is_left(at):
    wrong = changed(DEEP, f"kernel{at}", lambda kernel: kernel * 2)
    part = reduce_graph(wrong, values(DEEP, IMAGES), judge_on_cpu(90))
    assert operators(part) == ["Conv"]
    assert part.minimal
    assert list(part.expected) == [f"conv{at}"]
    assert "SQNR" in part.why
    assert [len(value) for value in (*part.inputs.values(), *part.expected.values())] == [1, 1]


def test_the_end_may_be_named_as_where_the_layers_were_compared():
    wrong = changed(DEEP, "kernel7", lambda kernel: kernel * 2)
    tried = []

    def judge(*part):
        tried.append(len(part[0].graph.node))
        return judge_on_cpu(60)(*part)

    part = reduce_graph(wrong, values(DEEP, IMAGES), judge, end="conv7")
    assert operators(part) == ["Conv"]
    assert set(tried) == {1}


def test_what_has_no_reference_value_stays_with_its_neighbour():
    known = {name: value for name, value in values(DEEP, IMAGES).items() if not name.startswith("conv")}
    part = reduce_graph(changed(DEEP, "kernel7", np.negative), known, judge_on_cpu(60))
    assert operators(part) == ["Conv", "Relu"]


def test_two_faults_that_only_matter_together_stay_together():
    """Each convolution alone is asked for 23 dB and gives them; one behind the other they do not."""
    wrong = DEEP
    for at in ("5", "6"):
        wrong = changed(wrong, f"kernel{at}", lambda kernel: (kernel * 1.1).astype(np.float32))
    known = values(DEEP, IMAGES)
    part = reduce_graph(wrong, known, judge_on_cpu(23), end="conv6")
    assert operators(part) == ["Conv", "Relu", "Conv"]


def test_an_overflow_in_fp16_is_found_where_it_happens():
    half = classifier("fp16", more_convolutions=6)
    known = values(classifier(more_convolutions=6), IMAGES)
    wrong = changed(half, "kernel3", lambda kernel: np.full_like(kernel, 3e4))
    part = reduce_graph(wrong, known, judge_on_cpu(20))
    assert operators(part) == ["Conv"]
    assert list(part.expected) == ["conv3"]
    assert "NaN or infinite" in part.why


def test_pairs_of_weights_are_computed_and_pairs_of_activations_cut_off():
    eight_bits = classifier("int8", more_convolutions=4)
    known = values(classifier(more_convolutions=4), IMAGES)
    part = reduce_graph(changed(eight_bits, "kernel2", np.negative), known, judge_on_cpu(10), end="conv2")
    assert operators(part) == ["Conv"]
    assert list(part.inputs) == ["relu1_dq"]


def test_a_scale_that_clips_is_reduced_to_its_pair():
    eight_bits = classifier("int8", more_convolutions=2)
    known = values(classifier(more_convolutions=2), IMAGES)
    wrong = changed(eight_bits, "x_scale", lambda scale: np.float32(scale / 1000))
    part = reduce_graph(wrong, known, judge_on_cpu(10))
    assert operators(part) == ["QuantizeLinear", "DequantizeLinear"]


def test_it_stops_when_the_time_is_up():
    wrong = changed(DEEP, "kernel7", lambda kernel: kernel * 2)
    assert reduce_graph(wrong, values(DEEP, IMAGES), judge_on_cpu(60), seconds=-1) is None


def test_shapes_and_values_that_are_wrong_are_said():
    reference = {"y": np.ones((2, 3), np.float32)}
    assert what_is_wrong({"y": np.ones((2, 3))}, reference, 60) == ""
    assert "shape (1, 3)" in what_is_wrong({"y": np.ones((1, 3))}, reference, 60)
    assert "1 values of 6" in what_is_wrong({"y": np.array([[1, 1, 1], [1, np.nan, 1]])}, reference, 60)
    assert "20.0 dB" in what_is_wrong({"y": np.full((2, 3), 1.1)}, reference, 60)


def test_the_files_show_the_failure_with_numpy_and_onnxruntime_alone(tmp_path, monkeypatch, capsys):
    wrong = changed(DEEP, "kernel7", lambda kernel: kernel * 2)
    (tmp_path / "model.onnx").write_bytes(wrong.SerializeToString())
    known = values(DEEP, IMAGES)
    part = reduce_graph(wrong, known, judge_on_cpu(60))
    layers = {"conv6": ["six"], "conv7": ["a folded one", "seven"]}
    record = write_reduced(tmp_path, part, "export/model.onnx", layers, tmp_path / "model.onnx")
    assert (record.run, record.layers, record.nodes) == ("export/model.onnx", ("a folded one", "seven"), 1)
    assert record.files[0] == "reduced/export-model-onnx/model.onnx"
    folder = (tmp_path / record.files[0]).parent
    onnx.checker.check_model(onnx.load(folder / "model.onnx"), full_check=True)
    text = (folder / "README.txt").read_text()
    assert part.why in text
    lines = text[text.index("import numpy") :]
    assert re.findall(r"^(?:import|from) .*", lines, re.M) == ["import numpy as np, onnxruntime as ort"]
    assert len(lines.strip().splitlines()) == 5
    monkeypatch.chdir(folder)
    exec(lines, {})
    name, most, largest = capsys.readouterr().out.split()
    assert name == "conv7"
    assert float(most) == pytest.approx(float(largest), rel=0.5)
