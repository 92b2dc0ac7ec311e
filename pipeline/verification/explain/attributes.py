"""Causes in the settings of a layer's nodes, each shown by repair: with another setting the layer has to be right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export.onnx_passes.graph import attribute, constants, copy_model
from pipeline.artifacts.diagnosis import Cause
from pipeline.artifacts.tensor_changes import UNCHANGED
from pipeline.verification.explain.batches import nodes_over_batch
from pipeline.verification.explain.fit import Explanation
from pipeline.verification.explain.part import Part, with_tensor
from pipeline.verification.explain.remedies import AGAIN

EPSILONS = (1e-3, 1e-5, 1.001e-5, 1e-4, 1e-6, 1e-2, 2e-5)  # of common BatchNorms
_PADDED = ("Conv", "MaxPool", "AveragePool")
_SUMS = ("Add", "Sub", "Mul", "Max", "Min")  # operators that join two tensors
_MODES = ("nearest", "linear", "cubic")
_COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
_ROUNDING = ("floor", "round_prefer_floor", "ceil", "round_prefer_ceil")
_PAD_MODES = ("constant", "reflect", "edge")
_EXPORT = f"{AGAIN}; if another tool made it, another version of that tool may do it right."


@dataclass(frozen=True, eq=False)
class _Repair:
    cause: Cause
    node: NodeProto
    text: str  # what is wrong, after "In layer x "
    what: str  # the repair, after a comma
    model: ModelProto


def explain_attributes(part: Part) -> Explanation | None:
    """Explain a layer by a setting of one of its nodes."""
    best: tuple[float, _Repair] | None = None
    for repair in _repairs(part):
        db = part.repaired(repair.model)
        if part.agrees(db) and (best is None or db > best[0] + 3):
            best = db, repair
    if best is None:
        return None
    db, repair = best
    layer = part.layer_of(repair.node)
    return Explanation(
        repair.cause,
        f"In layer {layer!r} {repair.text}.",
        f"{repair.node.op_type} {repair.node.name!r}: {part.repair_in_words(repair.what, db)}",
        _EXPORT,
        layer,
    )


def _repairs(part: Part) -> Iterator[_Repair]:
    """Yield what may be wrong, the likeliest first."""
    model = part.model
    for node in nodes_over_batch(model):
        if node.op_type == "BatchNormalization":
            yield _Repair(
                "training mode", node, "BatchNorm runs in training mode: it normalizes with the images of the batch",
                "with the statistics that were learned", _without_training(model, node),
            )  # fmt: skip
    for node in part.nodes:
        if node.op_type in _PADDED:
            yield from _borders(model, node)
        if node.op_type == "Conv":
            yield from _dilations(part, node)
        if node.op_type == "MaxPool" and any(attribute(node, "pads", ())):
            yield _zero_border(model, node)
        if node.op_type == "Pad":
            yield from _pads(model, node)
        if node.op_type == "AveragePool":
            now = attribute(node, "count_include_pad", 0)
            yield _Repair(
                "pooling", node,
                f"the average pool {'counts' if now else 'does not count'} the padding around the image, which Keras "
                f"{'does not' if now else 'does'}",
                f"with count_include_pad={1 - now}", _set(model, node, count_include_pad=1 - now),
            )  # fmt: skip
        if node.op_type in ("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"):
            yield from _other_pool(model, node)
        if node.op_type == "BatchNormalization":
            yield from _epsilons(part, node)
        if node.op_type in ("Resize", "Upsample"):
            yield from _resizing(model, node)
        if node.op_type in _SUMS:
            yield from _other_sum(model, node)
        if node.op_type in ("LeakyRelu", "Elu", "Clip", "Relu", "HardSigmoid", "Gelu", "Sigmoid", "Tanh", "Identity"):
            yield from _activations(part, node)


def _without_training(model: ModelProto, node: NodeProto) -> ModelProto:
    result = _set(model, node, training_mode=0)
    for other in result.graph.node:
        if other.output[0] == node.output[0]:
            del other.output[1:]
    return result


def _borders(model: ModelProto, node: NodeProto) -> Iterator[_Repair]:
    """Yield other paddings under which the output keeps its size."""
    now = list(attribute(node, "pads", ()))
    if len(now) not in (0, 4) or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return
    now = now or [0, 0, 0, 0]
    top, left, bottom, right = now
    kernel = attribute(node, "kernel_shape", None) or (7, 7)
    ends = [_same_size(*pair, stride, size) for pair, stride, size in zip(
        ((top, bottom), (left, right)), attribute(node, "strides", (1, 1)), kernel)]  # fmt: skip
    alike = [((t, b), (t2, b2)) for (t, b), (t2, b2) in product(*ends)]
    # Height and width are padded alike nearly always: those first.
    for (t, b), (le, r) in sorted(alike, key=lambda pairs: pairs[0] != pairs[1])[:40]:
        if (pads := [t, le, b, r]) != now:
            yield _Repair(
                "padding", node,
                f"the border is padded otherwise than in Keras (top, left, bottom, right: {tuple(now)} instead of "
                f"{tuple(pads)}), so the image is shifted",
                f"with the padding {tuple(pads)}", _set(model, node, pads=pads),
            )  # fmt: skip


def _same_size(begin: int, end: int, stride: int, kernel: int) -> list[tuple[int, int]]:
    """Return the paddings whose sum gives the same size of output, or may do so with this stride."""
    return [
        (b, e)
        for b in range(kernel)
        for e in range(kernel)
        if abs(b + e - begin - end) < stride or b + e == begin + end
    ]


def _dilations(part: Part, node: NodeProto) -> Iterator[_Repair]:
    """Yield the dilation that Keras has, with a border of the same kind."""
    now = list(attribute(node, "dilations", (1, 1)))
    kernel = attribute(node, "kernel_shape", ())
    pads = list(attribute(node, "pads", (0, 0, 0, 0)))
    for layer in part.keras_layers():
        wanted = [int(rate) for rate in getattr(layer, "dilation_rate", now)]
        if wanted == now or not len(wanted) == len(kernel) == len(now) == len(pads) // 2:
            continue
        # What the kernel grows or shrinks by is shared by both sides.
        change = [(side - 1) * (new - old) // 2 for side, new, old in zip(kernel, wanted, now)] * 2
        padded = [max(0, pad + by) for pad, by in zip(pads, change)] if any(pads) else pads
        yield _Repair(
            "attribute", node, f"the dilation is {tuple(now)} instead of {tuple(wanted)}",
            f"with {tuple(wanted)}", _set(part.model, node, dilations=wanted, pads=padded),
        )  # fmt: skip


def _pads(model: ModelProto, node: NodeProto) -> Iterator[_Repair]:
    """Yield other borders of a Pad node."""
    table = constants(model.graph)
    if len(node.input) < 2 or node.input[1] not in table:
        return
    now = numpy_helper.to_array(table[node.input[1]])
    half = len(now) // 2
    padded = [axis for axis in range(half) if now[axis] or now[axis + half]]
    totals = [int(now[axis] + now[axis + half]) for axis in padded]
    for begins in product(*(range(total + 1) for total in totals)):
        pads = now.copy()
        for axis, begin, total in zip(padded, begins, totals):
            pads[axis], pads[axis + half] = begin, total - begin
        if (pads != now).any():
            text = f"the border is padded otherwise than in Keras ({now.tolist()} instead of {pads.tolist()})"
            yield _Repair(
                "padding", node, text, f"with the padding {pads.tolist()}", with_tensor(model, node.input[1], pads)
            )
    mode = attribute(node, "mode", b"constant").decode()
    for other in _PAD_MODES:
        if other != mode:
            yield _Repair(
                "padding", node, f"the border is filled by the mode {mode!r} instead of {other!r}",
                f"with the mode {other!r}", _set(model, node, mode=other),
            )  # fmt: skip


def _other_pool(model: ModelProto, node: NodeProto) -> Iterator[_Repair]:
    other = (
        node.op_type.replace("Average", "Max") if "Average" in node.op_type else node.op_type.replace("Max", "Average")
    )
    changed = copy_model(model)
    for item in changed.graph.node:
        if item.output[0] == node.output[0]:
            item.op_type = other
            kept = [a for a in item.attribute if a.name not in ("count_include_pad", "storage_order")]
            del item.attribute[:]
            item.attribute.extend(kept)
            del item.output[1:]
    kinds = {True: "the mean", False: "the maximum"}
    yield _Repair(
        "pooling", node,
        f"the pool takes {kinds['Average' in node.op_type]} where Keras takes {kinds['Average' in other]}",
        f"as {other}", changed,
    )  # fmt: skip


def _zero_border(model: ModelProto, node: NodeProto) -> _Repair:
    """Return the repair of a MaxPool that should see zeros around the image."""
    top, left, bottom, right = attribute(node, "pads")
    changed = _set(model, node, pads=[0, 0, 0, 0])
    border, padded = f"{node.output[0]}/border", f"{node.output[0]}/padded"
    pads = np.asarray([0, 0, top, left, 0, 0, bottom, right], np.int64)
    changed.graph.initializer.append(numpy_helper.from_array(pads, border))
    place = next(i for i, item in enumerate(changed.graph.node) if item.output[0] == node.output[0])
    changed.graph.node[place].input[0] = padded
    changed.graph.node.insert(place, helper.make_node("Pad", [node.input[0], border], [padded], f"{node.name}/Pad"))
    return _Repair(
        "padding", node, "the pool leaves the border out, where Keras pads with zeros, which may be the largest values",
        "with zeros around the image", changed,
    )  # fmt: skip


def _epsilons(part: Part, node: NodeProto) -> Iterator[_Repair]:
    """Yield other epsilons of a BatchNorm, Keras' own first."""
    now = float(attribute(node, "epsilon", 1e-5))
    own = [float(layer.epsilon) for layer in part.keras_layers() if hasattr(layer, "epsilon")]
    for epsilon in dict.fromkeys((*own, *EPSILONS)):
        if abs(epsilon / now - 1) > 1e-3:
            yield _Repair(
                "epsilon", node, f"BatchNorm's epsilon is {now:.4g} instead of {epsilon:.4g}",
                f"with {epsilon:.4g}", _set(part.model, node, epsilon=epsilon),
            )  # fmt: skip


def _resizing(model: ModelProto, node: NodeProto) -> Iterator[_Repair]:
    now = {name: attribute(node, name, default).decode() for name, default in (
        ("mode", b"nearest"), ("coordinate_transformation_mode", b"half_pixel"),
        ("nearest_mode", b"round_prefer_floor"))}  # fmt: skip
    for mode, coordinates in product(_MODES, _COORDINATES):
        for rounding in _ROUNDING if mode == "nearest" else (now["nearest_mode"],):
            new = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
            if new == now or (mode != "nearest" and {**new, "nearest_mode": ""} == {**now, "nearest_mode": ""}):
                continue
            changed = ", ".join(f"{key}={value}" for key, value in new.items() if value != now[key])
            before = ", ".join(f"{key}={now[key]}" for key, value in new.items() if value != now[key])
            yield _Repair(
                "resize", node, f"images are resized by another method than in Keras ({before} instead of {changed})",
                f"with {changed}", _set(model, node, **new),
            )  # fmt: skip


def _other_sum(model: ModelProto, node: NodeProto) -> Iterator[_Repair]:
    """Yield other operators that join two tensors."""
    for name in _SUMS:
        if name != node.op_type:
            changed = copy_model(model)
            for item in changed.graph.node:
                if item.output[0] == node.output[0]:
                    item.op_type = name
            yield _Repair(
                "attribute", node, f"the operator is {node.op_type} where Keras has {name}", f"with {name}", changed,
            )  # fmt: skip


def _activations(part: Part, node: NodeProto) -> Iterator[_Repair]:
    """Yield other activations."""
    model = part.model
    offsets = part.changes.get(node.output[0], UNCHANGED).offsets
    if len(offsets) == 1 and offsets[0]:  # a ReLU whose output is lowered
        lowest = -float(offsets[0])
        changed = copy_model(model)
        changed.graph.initializer.append(numpy_helper.from_array(np.float32(lowest), "lowered/lowest"))
        for item in changed.graph.node:
            if item.output[0] == node.output[0]:
                item.CopyFrom(helper.make_node("Max", [node.input[0], "lowered/lowest"], [node.output[0]], node.name))
        yield _Repair(
            "attribute", node, f"the {node.op_type} is none with the minimum {lowest:.4g}, which stands for a ReLU's 0",
            f"with the minimum {lowest:.4g}", changed,
        )  # fmt: skip
    if node.op_type == "LeakyRelu":
        now = float(attribute(node, "alpha", 0.01))
        for alpha in (0.01, 0.1, 0.2, 0.3):
            if abs(alpha - now) > 1e-4:
                yield _Repair(
                    "attribute", node, f"the slope of LeakyRelu is {now:.3g} instead of {alpha:.3g}",
                    f"with {alpha:.3g}", _set(model, node, alpha=alpha),
                )  # fmt: skip
    for name in (
        "Relu", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "Identity",
    ):  # fmt: skip
        if name == node.op_type:
            continue
        changed = copy_model(model)
        for item in changed.graph.node:
            if item.output[0] == node.output[0]:
                item.CopyFrom(helper.make_node(name, [node.input[0]], [node.output[0]], node.name))
        yield _Repair(
            "attribute", node, f"the activation is {node.op_type} where Keras has {name.replace('Identity', 'none')}",
            f"with {name}", changed,
        )  # fmt: skip


def _set(model: ModelProto, node: NodeProto, **values: Any) -> ModelProto:
    """Return the model with other attributes of a node."""
    result = copy_model(model)
    for item in result.graph.node:
        if item.output[0] == node.output[0]:
            kept = [a for a in item.attribute if a.name not in values]
            del item.attribute[:]
            item.attribute.extend(kept)
            item.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())
    return result


def only_at_border(reference: np.ndarray, own: np.ndarray) -> bool:
    """Return whether (N, C, H, W) or (N, H, W, C) values differ at the border of the image alone."""
    if reference.ndim != 4 or min(reference.shape[2:] if reference.shape[1] > 3 else reference.shape[1:3]) < 5:
        return False
    error = (np.asarray(own, np.float64) - reference) ** 2
    axes = [(0, 1, 3), (0, 1, 2)] if reference.shape[2] == reference.shape[3] else [(0, 2, 3), (0, 1, 3)]
    for other in axes:
        line = error.sum(axis=other)
        inside = float(line[2:-2].mean()) if len(line) > 5 else float(line.mean())
        if float(max(line[:2].max(), line[-2:].max())) > 1e4 * max(inside, 1e-30):
            return True
    return False
