"""What each quantized layer costs alone, and the fewest layers to keep in float for a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from export.int8.placement import Kept, quantized_edges
from export.int8.qdq import quantize
from export.int8.scales import Scales
from export.int8.simulate import HeldOut
from export.metrics.distances import Comparison
from export.onnx_passes.layer_names import keras_layer

_WORTH = 0.01  # of the noise of all layers: what costs less is not worth a float layer


@dataclass(frozen=True)
class Budget:
    """What an INT8 model must reach against FP32 on held-out images. A None is not asked for.

    Args:
        top1_agreement: At least this share of images with the same top class.
        accuracy_drop: At most this share of accuracy lost.
        sqnr_db: At least this signal to quantization noise ratio of the logits.
        relative_error: At most this difference of a logit, relative to the largest.
        certain: A share counts as missed only where its 95 % interval excludes what is asked, as in a verdict: a few
            images with two nearly equal classes are no reason to give up the speed of FP16. Defaults to False.
    """

    top1_agreement: float | None = None
    accuracy_drop: float | None = None
    sqnr_db: float | None = None
    relative_error: float | None = None
    certain: bool = False

    def met_by(self, comparison: Comparison) -> bool:
        """Return whether a comparison meets it; of shares the point estimates, or the better ends of their intervals."""
        drop, agreement = comparison.accuracy_drop, comparison.top1_agreement
        if self.certain:
            agreement = comparison.agreement_interval[1]
            drop = comparison.accuracy_drop_interval[0] if comparison.accuracy_drop_interval is not None else None
        return (
            comparison.finite
            and (self.top1_agreement is None or agreement >= self.top1_agreement)
            and (self.accuracy_drop is None or drop is None or drop <= self.accuracy_drop)
            and (self.sqnr_db is None or comparison.sqnr_db >= self.sqnr_db)
            and (self.relative_error is None or comparison.relative_error <= self.relative_error)
        )

    def __str__(self) -> str:
        parts = [
            (self.top1_agreement, "agreement of at least {:.2%}"),
            (self.accuracy_drop, "accuracy drop of at most {:.2%}"),
            (self.sqnr_db, "SQNR of at least {:.1f} dB"),
            (self.relative_error, "relative error of at most {:.1e}"),
        ]
        return ", ".join(form.format(value) for value, form in parts if value is not None) or "nothing"


@dataclass(frozen=True)
class LayerCost:
    """What quantizing one layer, and no other, does to the logits.

    Args:
        node: Its name in the graph.
        keras_layer: The layer it comes from.
        op: The ONNX operator.
        noise: Energy of the error over the energy of the logits. Noises of several layers about add up.
        top1_agreement: Share of images with the same top class as FP32.
        accuracy_drop: Accuracy lost against FP32.
    """

    node: str
    keras_layer: str
    op: str
    noise: float
    top1_agreement: float
    accuracy_drop: float

    @classmethod
    def of(cls, node: str, op: str, comparison: Comparison) -> LayerCost:
        """Take the cost of a node from the model in which it alone is quantized."""
        noise = 10.0 ** (-comparison.sqnr_db / 10.0) if comparison.finite else math.inf
        return cls(node, keras_layer(node), op, noise, comparison.top1_agreement, comparison.accuracy_drop or 0.0)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise ratio of the logits, dB; inf without noise."""
        return -10.0 * math.log10(self.noise) if self.noise > 0 else math.inf


@dataclass(frozen=True)
class Selection:
    """The layers kept in float, and what came of it on held-out images.

    Args:
        kept: Node name -> why, in the order of their cost.
        comparison: Of the model with these layers kept.
        met: Whether that meets the budget.
        candidates: How many layers could have been kept.
    """

    kept: dict[str, Kept]
    comparison: Comparison
    met: bool
    candidates: int


def measure_layers(
    model: onnx.ModelProto,
    scales: Scales,
    held_out: HeldOut,
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> list[LayerCost]:
    """Return the cost of each quantized layer alone, the dearest first.

    Args:
        model: float32, the one that the scales are of.
        scales: One for each of `quantizable_tensors`.
        held_out: Images that gave no scales.
        track: Shows the progress through the layers. Defaults to not showing it.
    """
    nodes = list(dict.fromkeys(edge.node for edge in quantized_edges(model)))
    operators = {node.name: node.op_type for node in model.graph.node}
    costs = []
    for name in track(nodes):
        others = {other: Kept("fp32", "measured alone") for other in nodes if other != name}
        found = held_out.judge(quantize(model, scales, base="fp32", kept=others)[0])
        costs.append(LayerCost.of(name, operators[name], found))
    return sorted(costs, key=lambda cost: -cost.noise)


def choose_layers(
    costs: Sequence[LayerCost],
    judge: Callable[[Mapping[str, Kept]], Comparison],
    budget: Budget,
    most_convs: int,
    precision: str = "fp16",
    given_up: str = "INT8",
    worth: float = _WORTH,
) -> Selection:
    """Return the fewest layers to keep in float that meet a budget, the dearest first.

    Bisects over how many of the ranking are kept, as keeping more does not cost accuracy. Where the budget can't be
    met, all candidates are kept.

    Args:
        costs: From `measure_layers`.
        judge: Measures the model with some layers kept, on held-out images.
        budget: What to reach.
        most_convs: How many Convs may be kept; other layers are not limited.
        precision: What they are kept in. Defaults to ``"fp16"``.
        given_up: What they are kept from. Defaults to ``"INT8"``.
        worth: Layers that make a smaller share of the noise are not considered. Defaults to a hundredth.
    """
    whole = sum(cost.noise for cost in costs)
    ranking: list[LayerCost] = []
    for cost in costs:
        full = cost.op == "Conv" and sum(c.op == "Conv" for c in ranking) >= most_convs
        if 0 < cost.noise >= worth * whole and not full:
            ranking.append(cost)

    def why(cost: LayerCost) -> str:
        share = cost.noise / whole if math.isfinite(cost.noise) else 1.0
        return f"kept: {share:.0%} of the {given_up} noise ({cost.sqnr_db:.1f} dB alone)"

    def selection(count: int) -> Selection:
        kept = {cost.node: Kept(precision, why(cost)) for cost in ranking[:count]}
        comparison = judge(kept)
        return Selection(kept, comparison, budget.met_by(comparison), len(ranking))

    best = selection(len(ranking))
    low, high = 0, len(ranking)
    while best.met and low < high:
        middle = (low + high) // 2
        tried = selection(middle)
        if tried.met:
            best, high = tried, middle
        else:
            low = middle + 1
    return best
