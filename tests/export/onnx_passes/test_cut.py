import numpy as np
import pytest
from onnx import TensorProto

from export.errors import ProjectError
from export.onnx_passes.cut import cut, extract, given, with_outputs
from export.ort_session import open_session
from tests.export.tiny_graphs import X, floats, graph, operators, unchanged


def two_paths():
    """x -> Relu a -> (Mul b, Neg c) -> Add y, and z, which nothing else needs."""
    return graph(
        [
            ("Relu", ["x"], "a", {}),
            ("Mul", ["a", "two"], "b", {}),
            ("Neg", ["a"], "c", {}),
            ("Add", ["b", "c"], "y", {}),
            ("Mul", ["x", "three"], "z", {}),
        ],
        {"two": np.float32(2), "three": floats(1, 4, 6, 6)},
        outputs=("y", "z"),
    )


def run(model, **feeds):
    session = open_session(model, exact=True)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))


def test_only_the_named_tensors_are_outputs_and_what_they_do_not_need_goes():
    part = unchanged(with_outputs, two_paths(), ["b", "a", "b"])
    assert [o.name for o in part.graph.output] == ["b", "a"]
    assert operators(part) == ["Relu", "Mul"]
    assert [t.name for t in part.graph.initializer] == ["two"]
    values = run(part, x=X)
    np.testing.assert_array_equal(values["b"], 2 * np.maximum(X, 0))


def test_readers_read_what_is_given_and_the_tensor_is_still_computed():
    model = unchanged(cut, two_paths(), ["a", "b"])
    assert [o.name for o in model.graph.output] == ["y", "z"]
    values = run(with_outputs(model, ["a", "b", "y"]), **{"x": X, given("a"): X + 1, given("b"): X})
    np.testing.assert_array_equal(values["a"], np.maximum(X, 0))  # of x
    np.testing.assert_array_equal(values["b"], 2 * (X + 1))  # of what was given as a
    np.testing.assert_array_equal(values["y"], X + -(X + 1))


def test_a_cut_part_asks_only_for_what_its_nodes_read():
    part = with_outputs(cut(two_paths(), ["a", "b"]), ["b"])
    assert [i.name for i in part.graph.input] == [given("a")]
    assert part.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_the_part_between_tensors_keeps_their_names():
    part = unchanged(extract, two_paths(), ["a", "x"], ["y"])
    assert [i.name for i in part.graph.input] == ["a"]
    np.testing.assert_array_equal(run(part, a=X)["y"], X)


def test_a_part_that_needs_more_than_it_is_given_is_refused():
    with pytest.raises(ProjectError, match=r"Received: \['b'\], without 'x'"):
        extract(two_paths(), ["b"], ["y"])


@pytest.mark.parametrize("function", [with_outputs, cut])
def test_a_tensor_that_no_node_writes_is_refused(function):
    with pytest.raises(ProjectError, match=r"Expected tensors that nodes of the model write.*\['two', 'q'\]"):
        function(two_paths(), ["a", "two", "q"])
