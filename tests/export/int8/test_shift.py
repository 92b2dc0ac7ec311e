"""The shift behind a ReLU: it changes no output, says what it changes, and refuses what it cannot make up for."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.int8 import regions as rules
from export.int8 import shift as room
from export.int8.placement import quantizable_tensors
from export.int8.regions import allowed, find_regions
from export.int8.report import Refusal
from export.int8.shift import shift
from export.int8.weights import round_to_nearest
from export.onnx_passes import graph
from export.onnx_passes.folding import LOWEST
from tests.export.tiny_graphs import floats, pixel_graph

BORDERS = ([1, 1, 1, 1], [2, 0, 0, 2])  # a window of 3 keeps the size


class Net:
    """A graph of float64 that grows node by node; channels and sizes are those of the maps (2, C, H, W)."""

    def __init__(self, seed=0):
        self.random = np.random.default_rng(seed)
        self.nodes, self.values, self.outputs = [], {}, []

    def constant(self, values, name=None):
        name = name or f"k{len(self.values)}"
        self.values[name] = np.asarray(values, np.float64 if np.asarray(values).dtype.kind == "f" else np.int64)
        return name

    def normal(self, *shape):
        return self.constant(self.random.normal(0, 1, shape) / np.sqrt(max(1, np.prod(shape[1:]))))

    def add(self, op, *inputs, **attributes):
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], f"{op}_{len(self.nodes)}", **attributes))
        return output

    def conv(self, x, channels, out=None, kernel=1, bias=True, group=1, **attributes):
        weight = self.normal(out or channels, channels // group, kernel, kernel)
        biases = [self.constant(self.random.normal(0, 1, out or channels))] if bias else []
        return self.add("Conv", x, weight, *biases, group=group, kernel_shape=[kernel] * 2, **attributes)

    def model(self, *outputs):
        made = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [2, 4, 8, 8])],
            [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in (*self.outputs, *outputs)],
            [numpy_helper.from_array(value, name) for name, value in self.values.items()],
        )
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model, names=None, x=None):
    """All tensors, or those named, in float64."""
    probe = graph.copy_model(model)
    del probe.graph.output[:]
    names = names or [name for node in model.graph.node for name in node.output]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in names)
    x = np.random.default_rng(7).normal(0, 1, (2, 4, 8, 8)) if x is None else x
    with np.errstate(over="ignore"):
        return dict(zip(names, ReferenceEvaluator(probe).run(None, {"x": x}), strict=True))


def close(found, expected):
    return bool(np.abs(found - expected).max() <= 1e-10 * max(1.0, np.abs(expected).max()))


def amounts_of(model, names=None):
    found = find_regions(model).found
    return {name: 0.37 * (1 + number) for number, name in enumerate(names if names is not None else found)}


def assert_exact(model, amounts, weights=None, expected=None):
    """Outputs are equal; `offsets` has exactly the tensors that changed, and by what."""
    shifted = shift(model, amounts, weights or (lambda node: None))
    before, after = run(expected or model), run(shifted.model)
    for output in model.graph.output:
        assert close(after[output.name], before[output.name]), output.name
    for name, values in before.items():
        offset = shifted.offsets.get(name, np.zeros(1))
        assert offset.shape == (1,)
        assert close(after[name] + offset, values), name
        assert (name in shifted.offsets) == (not close(after[name], values)), name
    return shifted


# --- graphs made by hypothesis ----------------------------------------------------------------------------------------


@st.composite
def nets(draw):
    """Chains, residual blocks, pools, branches and a head, with what can be shifted and what cannot."""
    net = Net(draw(st.integers(0, 10**6)))
    x, channels = "x", 4
    shared_bias, shared_weight = net.constant(net.random.normal(0, 1, 4)), net.normal(4, 4, 1, 1)

    def conv(tensor, padded=True, stride=1):
        kind = draw(st.sampled_from(["plain", "plain", "no bias", "grouped", "shared weight", "shared bias", "wide"]))
        if kind == "shared weight":
            return net.add("Conv", tensor, shared_weight, shared_bias, strides=[stride] * 2)
        if kind == "shared bias":
            return net.add("Conv", tensor, net.normal(4, 4, 1, 1), shared_bias, strides=[stride] * 2)
        kernel, pads = (3, draw(st.sampled_from(BORDERS))) if kind == "wide" and padded else (1, [0] * 4)
        group = 2 if kind == "grouped" else 1
        return net.conv(tensor, 4, kernel=kernel, bias=kind != "no bias", group=group, pads=pads, strides=[stride] * 2)

    def rectified(tensor):
        if draw(st.booleans()):
            return net.add("Relu", tensor)
        high = draw(st.sampled_from([6.0, 1.0]))
        return net.add("Clip", tensor, net.constant(0.0), net.constant(high))

    def chain(tensor):
        return rectified(conv(tensor))

    def affine(tensor):
        scaled = net.add("Mul", tensor, net.constant(net.random.uniform(0.5, 2, (1, 4, 1, 1))))
        moved = net.constant(net.random.normal(0, 1, draw(st.sampled_from([(1, 4, 1, 1), (4, 1, 1), (1,)]))))
        order = [scaled, moved] if draw(st.booleans()) else [moved, scaled]
        return rectified(net.add(draw(st.sampled_from(["Add", "Sub"])), *order))

    def residual(tensor):
        main = conv(rectified(conv(tensor)))
        skip = conv(tensor, padded=False) if draw(st.booleans()) else tensor
        total = net.add("Add", *draw(st.permutations([main, skip])))
        return rectified(total) if draw(st.booleans()) else total

    def pooled(tensor):
        kind = draw(st.sampled_from(["MaxPool", "Max", "AveragePool", "Concat", "Sigmoid", "output", "gate"]))
        same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        if kind == "MaxPool":
            return net.add("MaxPool", tensor, **same)
        if kind == "Max":
            low = net.constant(np.array([float(LOWEST), 0.1, -0.2, float(LOWEST)]).reshape(4, 1, 1))
            return net.add("Max", *draw(st.permutations([net.add("MaxPool", tensor, **same), low])))
        if kind == "AveragePool":
            return net.add("AveragePool", tensor, count_include_pad=draw(st.sampled_from([0, 1])), **same)
        if kind == "Concat":
            both = net.add("Concat", tensor, conv(tensor, padded=False), axis=1)
            return net.conv(both, 8, 4)
        if kind == "Sigmoid":
            return net.add("Mul", tensor, net.add("Sigmoid", tensor))
        if kind == "gate":
            return net.add("Mul", tensor, net.conv(net.add("GlobalAveragePool", tensor), 4))
        net.outputs.append(tensor)
        return net.add("Identity", tensor)

    for block in draw(st.lists(st.sampled_from([chain, affine, residual, pooled, pooled]), min_size=2, max_size=6)):
        x = block(x)
    x = chain(x)
    head = draw(st.sampled_from(["GlobalAveragePool", "ReduceMean", "AveragePool", "Flatten"]))
    if head == "ReduceMean":
        flat = net.add("ReduceMean", x, axes=[2, 3], keepdims=0)
    else:
        pools = {"GlobalAveragePool": {}, "AveragePool": {"kernel_shape": [8, 8]}}
        flat = net.add("Flatten", net.add(head, x, **pools[head]) if head in pools else x)
    width = 256 if head == "Flatten" else channels
    if draw(st.booleans()):
        across = draw(st.booleans())
        weight = net.normal(*((3, width) if across else (width, 3)))
        return net.model(net.add("Gemm", flat, weight, net.normal(3), transB=int(across), alpha=0.5, beta=2.0))
    return net.model(net.add("Add", net.add("MatMul", flat, net.normal(width, 3)), net.normal(3)))


@given(net=nets(), chosen=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_output_changes(net, chosen):
    names = [name for name in find_regions(net).found if chosen.random() < 0.8]
    assert_exact(net, amounts_of(net, names))


@given(net=nets())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_with_rounded_weights_it_is_the_graph_with_rounded_weights(net):
    table = graph.constants(net.graph)
    rounded = {n.input[1]: round_to_nearest(numpy_helper.to_array(table[n.input[1]])).values.astype(np.float64)
               for n in net.graph.node if n.op_type == "Conv"}  # fmt: skip

    def with_rounded(model):
        result = graph.copy_model(model)
        for tensor in result.graph.initializer:
            if tensor.name in rounded:
                tensor.CopyFrom(numpy_helper.from_array(rounded[tensor.name], tensor.name))
        return result

    shifted = shift(net, amounts_of(net), lambda node: rounded[node.input[1]])
    names = [output.name for output in net.graph.output]
    plain, found = run(with_rounded(net), names), run(with_rounded(shifted.model), names)
    assert all(close(found[name], plain[name]) for name in names)


@given(net=nets())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_quantized_tensor_behind_a_relu_is_found_or_refused_with_a_node(net):
    regions = find_regions(net)
    assert not regions.found.keys() & regions.refused.keys()
    assert regions.nodes.keys() == regions.found.keys() | regions.refused.keys()
    relus = {n.output[0]: n.name for n in net.graph.node if n.op_type in ("Relu", "Clip")}
    for tensor in quantizable_tensors(net):
        if tensor in relus:
            assert regions.nodes[tensor] == (relus[tensor],)
    assert all(len(regions.nodes[tensor]) == 1 for tensor in regions.found)
    nodes = [node.name for node in net.graph.node]
    general = ("an output of the model", "have scales of their own", "has other readers")
    for why in regions.refused.values():
        assert why.node in nodes or any(words in why.kind for words in general), why
        assert not any(name in why.kind for name in nodes), why


@given(net=nets())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_what_is_found_or_refused_leaves_half_of_the_levels(net):
    regions = find_regions(net)
    values = run(net)
    for tensor in {**regions.found, **regions.refused}:
        assert values[tensor].min() >= 0, tensor


def test_the_property_finds_a_padded_reader_that_is_not_refused(monkeypatch):
    monkeypatch.setattr(rules, "_pads", lambda node: False)
    at_once = settings(max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate], database=None)

    @at_once
    @given(net=nets())
    def no_output_changes(net):
        assert_exact(net, amounts_of(net))

    with pytest.raises(AssertionError):
        no_output_changes()


# --- one rule each ----------------------------------------------------------------------------------------------------


def found_in(build):
    """The net that a function builds on a ReLU behind a Conv, what is found in it, and that ReLU's reason as text."""
    net = Net()
    relu = net.add("Relu", net.conv("x", 4))
    model = net.model(*build(net, relu))
    regions = find_regions(model)
    return model, regions, str(regions.refused.get(relu, ""))


def two_readers(net, relu):
    return [net.add("Add", net.conv(relu, 4), net.conv(relu, 4))]


def block_behind(net, relu):
    """Its main branch makes up for the skip branch, and loses what the ReLU behind the Add is lowered by."""
    total = net.add("Add", net.conv(net.add("Relu", net.conv(relu, 4)), 4, bias=False), relu)
    return [net.conv(net.add("Relu", total), 4)]


EXACT = {
    "two Convs": two_readers,
    "a Conv that widens and has no bias": lambda net, relu: [net.conv(relu, 4, 6, bias=False)],
    "an identity block before a ReLU": block_behind,
    "a strided Conv": lambda net, relu: [net.conv(relu, 4, strides=[2, 2])],
    "a wide Conv without a border": lambda net, relu: [net.conv(relu, 4, kernel=3)],
    "a Conv with SAME and one weight a channel": lambda net, relu: [net.conv(relu, 4, auto_pad="SAME_UPPER")],
    "an identity block": lambda net, relu: [net.add("Add", net.conv(net.add("Relu", net.conv(relu, 4)), 4), relu)],
    "a MaxPool": lambda net, relu: [net.conv(net.add("MaxPool", relu, kernel_shape=[3, 3], pads=[1] * 4), 4)],
    "a mean without its border": lambda net, relu: [
        net.conv(net.add("AveragePool", relu, kernel_shape=[3, 3], pads=[1] * 4), 4)
    ],
    "a head that is concatenated": lambda net, relu: [
        net.add("Concat", net.add("GlobalAveragePool", relu), net.constant(np.ones((2, 1, 1, 1))), axis=1)
    ],
    "a pooled output": lambda net, relu: [net.add("GlobalAveragePool", relu)],
    "Min and Max": lambda net, relu: [
        net.conv(net.add("Min", net.add("Max", relu, net.constant(0.2)), net.constant(0.9)), 4)
    ],
}


@pytest.mark.parametrize("name", EXACT)
def test_it_is_made_up_for(name):
    model, regions, why = found_in(EXACT[name])
    assert not why
    assert len(regions.found) >= 1
    shifted = assert_exact(model, amounts_of(model))
    assert set(shifted.notes.values()) == {room.SHIFTED}
    assert set(shifted.notes) == {relu for tensor in regions.found for relu in regions.nodes[tensor]}


def computed(net, relu):
    weight = net.add("Mul", net.normal(4, 4, 1, 1), net.constant(2.0))
    return [net.add("Add", net.add("Conv", "x", weight), net.conv(relu, 4)), net.add("Conv", relu, weight)]


def with_computed_bias(net, tensor):
    return net.add("Conv", tensor, net.normal(4, 4, 1, 1), net.add("Neg", net.normal(4)))


def computed_bias(net, relu):
    return [with_computed_bias(net, relu)]


def computed_bias_of_main(net, relu):
    return [net.add("Add", with_computed_bias(net, "x"), relu)]


def main_with_two_readers(net, relu):
    main = net.conv("x", 4)
    return [net.add("Add", main, relu), net.add("Sigmoid", main), net.conv(relu, 4)]


def skip_of_an_output(net, relu):
    main = net.conv(relu, 4)
    return [net.add("Add", main, relu), main]


PADDED = "Conv reads it with padding, whose zeros would stand for 128 scales"
REFUSED = {
    "padding": (lambda net, relu: [net.conv(relu, 4, kernel=3, pads=[1] * 4)], f"{PADDED} ('Conv_2')"),
    "SAME": (lambda net, relu: [net.conv(relu, 4, kernel=3, auto_pad="SAME_UPPER")], f"{PADDED} ('Conv_2')"),
    "Concat": (
        lambda net, relu: [net.add("Concat", relu, net.conv(relu, 4), axis=1)],
        "Concat reads it ('Concat_3')",
    ),
    "output": (lambda net, relu: [net.conv(relu, 4), relu], "it is an output of the model"),
    "counted border": (
        lambda net, relu: [
            net.conv(relu, 4),
            net.add("AveragePool", relu, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
        ],
        "AveragePool counts the zeros of its border ('AveragePool_3')",
    ),
    "counted last window": (  # which begins inside and ends outside
        lambda net, relu: [
            net.conv(relu, 4),
            net.add("AveragePool", relu, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, count_include_pad=1),
        ],
        "AveragePool counts the zeros of its border ('AveragePool_3')",
    ),
    "SAME along one axis": (
        lambda net, relu: [net.add("Conv", relu, net.normal(4, 4, 1, 3), kernel_shape=[1, 3], auto_pad="SAME_UPPER")],
        "Conv reads it with padding, whose zeros would stand for 128 scales ('Conv_2')",
    ),
    "Max with two tensors": (
        lambda net, relu: [net.conv(relu, 4), net.add("Max", relu, net.constant(0.2), "x")],
        "Max reads it ('Max_3')",
    ),
    "gate": (lambda net, relu: [net.conv(relu, 4), net.add("Sigmoid", relu)], "Sigmoid reads it ('Sigmoid_3')"),
    "classifier": (
        lambda net, relu: [net.conv(relu, 4), net.add("MatMul", relu, net.normal(8, 3))],
        "MatMul reads it ('MatMul_3')",
    ),
    "no Conv": (
        lambda net, relu: [net.conv(relu, 4), net.add("Add", relu, net.add("Sigmoid", "x"))],
        "no Conv of its own",
    ),
    "main output": (
        skip_of_an_output,
        "the Conv that would make up for it in an Add is an output of the model ('Conv_2')",
    ),
    "main with two readers": (main_with_two_readers, "no Conv of its own"),
    "computed bias": (computed_bias, "the bias of a Conv is computed ('Conv_3')"),
    "computed bias of the main branch": (computed_bias_of_main, "the bias of a Conv is computed ('Conv_3')"),
    "computed weights": (computed, "the weights of a Conv are computed ('Conv_6')"),
    "two scales": (
        lambda net, relu: [net.conv(relu, 4), net.conv(net.add("MaxPool", relu, kernel_shape=[2, 2]), 4)],
        "2 tensors behind this ReLU",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_named(name):
    build, words = REFUSED[name]
    model, regions, why = found_in(build)
    assert words in why
    other = Net()
    relu = other.add("Relu", other.conv("x", 4))
    assert relu not in regions.found
    with pytest.raises(KeyError):
        shift(model, {relu: 1.0}, lambda node: None)


def two_relus(net, relu):
    return net.add("Concat", net.add("Relu", net.conv("x", 4)), relu, axis=1)


def gated(net, relu):
    gate = net.add("Sigmoid", net.conv(net.add("GlobalAveragePool", relu), 4))
    return net.add("Mul", gate, relu)


def counted_mean(net, relu):
    return net.add("AveragePool", relu, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)


def raised(net, relu):
    return net.add("Mul", relu, net.constant(np.full((1, 4, 1, 1), 0.5)))


def both_gated(net, relu):
    return net.add("MaxPool", net.add("Concat", relu, gated(net, relu), axis=1), kernel_shape=[2, 2])


BEYOND = {
    "a Concat of two ReLUs": (two_relus, 8, "Concat reads it"),
    "a gate": (gated, 4, "Mul reads it"),
    "a mean that counts its border": (counted_mean, 4, "AveragePool counts the zeros of its border"),
    "a positive factor": (raised, 4, "Mul reads it"),
    "two of them, and a MaxPool": (both_gated, 8, "Mul reads it"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_a_refusing_node_makes_of_a_relu_is_refused_with_every_relu_in_it(name):
    build, channels, kind = BEYOND[name]
    net = Net()
    relu = net.add("Relu", net.conv("x", 4))
    last = build(net, relu)
    model = net.model(net.conv(last, channels))
    assert np.min(run(model)[last]) >= 0, "so half of the levels of INT8 are not used"
    regions = find_regions(model)
    assert last in regions.refused
    assert (regions.refused[last].kind, last in regions.found) == (kind, False)
    relus = {node.name for node in model.graph.node if node.op_type == "Relu"}
    assert set(regions.nodes[last]) == relus
    notes = shift(model, {}, lambda node: None).notes
    assert notes.keys() == relus
    assert all(note.startswith("not shifted: ") for note in notes.values())


FULL = {
    "a Concat with values below 0": lambda net, relu: net.add("Concat", relu, net.conv("x", 4), axis=1),
    "a factor below 0": lambda net, relu: net.add("Concat", *[net.add("Mul", relu, net.constant(-1.0))] * 2, axis=1),
    "a Sigmoid": lambda net, relu: net.add("Concat", *[net.add("Sigmoid", relu)] * 2, axis=1),
}


@pytest.mark.parametrize("name", FULL)
def test_a_tensor_that_no_relu_leaves_half_of_the_levels_is_not_named(name):
    net = Net()
    relu = net.add("Relu", net.conv("x", 4))
    last = FULL[name](net, relu)
    regions = find_regions(net.model(net.conv(last, 8)))
    assert last in quantizable_tensors(net.model(net.conv(last, 8)))
    assert last not in {**regions.refused, **regions.found}


WRITERS = {
    "an output": (lambda net: net.outputs.append("t0"), "what the ReLU reads is an output"),
    "another reader": (lambda net: net.outputs.append(net.add("Sigmoid", "t0")), "has other readers"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_the_relu_reads_has_no_other_use(name):
    net = Net()
    written = net.conv("x", 4)
    last = net.conv(net.add("Relu", written), 4)
    WRITERS[name][0](net)
    regions = find_regions(net.model(last))
    assert not regions.found
    assert WRITERS[name][1] in regions.refused["t1"].kind


def test_what_makes_up_for_it_before_the_relu_has_no_other_use():
    """The Conv of a main branch whose bias would lose m."""
    net = Net()
    main = net.conv("x", 4)
    relu = net.add("Relu", net.add("Add", main, net.add("Sigmoid", "x")))
    model = net.model(net.conv(relu, 4), main)
    assert "what the ReLU reads is an output" in find_regions(model).refused[relu].kind


def test_a_computed_bias_cannot_lose_it():
    net = Net()
    relu = net.add("Relu", with_computed_bias(net, "x"))
    model = net.model(net.conv(relu, 4))
    assert str(find_regions(model).refused[relu]) == "the bias of a Conv is computed ('Conv_1')"


@pytest.mark.parametrize(
    "bounds", [(-1.0, 6.0), (0.0, "computed"), ()], ids=["below 0", "a computed maximum", "no bounds"]
)
def test_a_clip_that_is_no_relu_is_none(bounds):
    net = Net()
    names = [net.add("Exp", net.constant(2.0)) if bound == "computed" else net.constant(bound) for bound in bounds]
    regions = find_regions(net.model(net.conv(net.add("Clip", net.conv("x", 4), *names), 4)))
    assert (regions.found, regions.refused, regions.nodes) == ({}, {}, {})


def test_a_product_has_no_bias_that_loses_it():
    net = Net()
    relu = net.add("Relu", net.add("Mul", net.conv("x", 4), net.constant(2.0)))
    refused = find_regions(net.model(net.conv(relu, 4))).refused
    assert refused[relu] == Refusal("Mul writes it, which has no bias", "Mul_1")


def test_conv_leaves_out_what_is_behind_an_add():
    """Of two branches, or of a constant, as a BatchNorm has."""
    net = Net()
    stem = net.add("Relu", net.conv("x", 4))
    block = net.add("Relu", net.add("Add", net.conv(stem, 4), stem))
    normalized = net.add("Relu", net.add("Add", net.add("Mul", net.conv(block, 4), net.normal(1)), net.normal(1)))
    regions = find_regions(net.model(net.conv(normalized, 4)))
    assert allowed(regions, "never") == ()
    assert allowed(regions, "conv") == (stem,)
    assert allowed(regions, "auto") == allowed(regions, "always") == (stem, block, normalized)


def test_the_clip_in_place_of_a_relu_has_finite_bounds():
    net = Net()
    relu = net.add("Relu", net.conv("x", 4))
    six = net.add("Clip", net.conv(relu, 4), net.constant(0.0), net.constant(6.0))
    model = net.model(net.conv(six, 4))
    result = shift(model, {relu: 2.0, six: 1.5}, lambda node: None).model
    table = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    bounds = [[float(table[name]) for name in n.input[1:]] for n in result.graph.node if n.op_type == "Clip"]
    assert bounds == [[-2.0, room.HIGHEST], [-1.5, 4.5]]
    assert result.graph.node[0].op_type == "Conv"


def test_only_what_is_shifted_is_noted():
    net = Net()
    relu = net.add("Relu", net.conv("x", 4))
    model = net.model(net.conv(net.add("Relu", net.conv(relu, 4)), 4))
    assert shift(model, {relu: 1.0}, lambda node: None).notes == {"Relu_1": room.SHIFTED}


def test_the_largest_constants_are_absolute_and_no_border_is_among_them():
    net = Net()
    written = net.add("Conv", "x", net.constant(np.ones((4, 4, 1, 1))), net.constant(np.full(4, -70000.0)))
    relu = net.add("Relu", written)
    border = net.constant(np.array([float(LOWEST), 0.5, 0.0, float(LOWEST)]).reshape(4, 1, 1))
    bounded = net.add("Max", relu, border)
    model = net.model(net.add("Conv", bounded, net.constant(np.full((4, 4, 1, 1), -2.0)), net.constant(np.zeros(4))))
    (tensor,) = find_regions(model).found
    largest = shift(model, {tensor: 3.0}, lambda node: None).largest
    assert largest == {"Conv_0": 70003.0, "Max_2": 3.0, "Conv_3": 24.0}


def test_the_argument_stays_and_nothing_to_shift_changes_nothing():
    net = Net()
    relu = net.add("Relu", net.conv("x", 4))
    model = net.model(net.conv(relu, 4))
    before = model.SerializeToString()
    assert shift(model, {}, lambda node: None).model.SerializeToString() == before
    assert shift(model, {relu: 1.0}, lambda node: None).model.SerializeToString() != before
    assert model.SerializeToString() == before


def test_amounts_that_cancel_leave_a_bias_that_is_rounded_once():
    """A dead output of a residual branch: each amount is a thousand times the bias, and their difference is not."""
    nodes = [
        ("Conv", ["f", "a", "a_bias"], "s", {}),
        ("Relu", ["s"], "r", {}),
        ("Conv", ["r", "b", "b_bias"], "m", {}),
        ("Add", ["m", "r"], "t", {}),
        ("Relu", ["t"], "u", {}),
        ("GlobalAveragePool", ["u"], "y", {}),
    ]
    small = np.array([1e-3, -2e-3, 3.3e-4, 7e-5], np.float32)
    values = {"a": floats(4, 4, 1, 1, seed=1), "a_bias": floats(4, seed=2), "b": np.zeros((4, 4, 1, 1), np.float32)}
    model = pixel_graph(nodes, {**values, "b_bias": small}, shapes={"y": ["batch", 4, 1, 1]})
    amounts = {"r": 2.58339047, "u": 2.57679390}
    result = shift(model, amounts, lambda node: None)
    conv = next(node for node in result.model.graph.node if node.op_type == "Conv" and node.output[0] == "m")
    biases = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    expected = (small.astype(np.float64) + amounts["r"] - amounts["u"]).astype(np.float32)
    np.testing.assert_array_equal(biases[conv.input[2]], expected)
    apart = (small + np.float32(amounts["r"])) - np.float32(amounts["u"])
    assert (apart != expected).any(), "rounding after each amount would not show"
