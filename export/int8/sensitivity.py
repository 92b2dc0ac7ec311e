"""The cost of quantizing each layer alone, and the fewest layers to keep in float to meet a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from export.int8.placement import Kept, quantized_edges
from export.int8.qdq import quantize
from export.int8.scales import Scales
from export.int8.simulate import HeldOut, Judged
from export.int8.weights import RoundedWeight
from export.metrics.distances import Comparison
from export.onnx_passes.layer_names import keras_layer

_MIN_SHARE = 0.01  # of the noise of all layers: a layer with less is not kept in float


@dataclass(frozen=True)
class Budget:
    """The limits of a model's distances from FP32 on held-out images; None is no limit.

    Args:
        top1_agreement: Smallest share of images with the same top class.
        accuracy_drop: Largest loss of accuracy.
        sqnr_db: Smallest signal to quantization noise ratio of the logits, dB.
        relative_error: Largest difference of a logit, relative to the largest logit.
        certain: Whether a share misses its limit only if its 95 % interval excludes the limit, as in a verdict: a few
            images with two nearly equal classes should not cost the speed of FP16. Defaults to False.
    """

    top1_agreement: float | None = None
    accuracy_drop: float | None = None
    sqnr_db: float | None = None
    relative_error: float | None = None
    certain: bool = False

    def met_by(self, comparison: Comparison) -> bool:
        """Return whether a comparison meets the limits; shares by their estimates or, if `certain`, their intervals."""
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
    """The effect of quantizing one layer alone on the logits.

    Args:
        node: Its name in the graph.
        keras_layer: Its Keras layer.
        op: The ONNX operator.
        noise: Energy of the error over the energy of the logits. The noises of several layers roughly add up.
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
        """Return the cost of a node from the comparison of the model in which it alone is quantized."""
        noise = 10.0 ** (-comparison.sqnr_db / 10.0) if comparison.finite else math.inf
        return cls(node, keras_layer(node), op, noise, comparison.top1_agreement, comparison.accuracy_drop or 0.0)

    @property
    def sqnr_db(self) -> float:
        """Return the signal to quantization noise ratio of the logits, dB; inf without noise."""
        return -10.0 * math.log10(self.noise) if self.noise > 0 else math.inf


@dataclass(frozen=True)
class Selection:
    """A selection of layers kept in float.

    Args:
        kept: Node name -> why, in the order of their cost.
        comparison: The model with these layers kept, compared on held-out images.
        met: Whether it meets the budget.
        candidates: Number of layers that could have been kept.
    """

    kept: dict[str, Kept]
    comparison: Judged
    met: bool
    candidates: int


def measure_layers(
    model: onnx.ModelProto,
    scales: Scales,
    held_out: HeldOut,
    track: Callable[[Sequence[str]], Iterable[str]] = iter,
    weights: Mapping[str, RoundedWeight] | None = None,
) -> list[LayerCost]:
    """Return the cost of each quantized layer alone, the highest first.

    Args:
        model: The float32 model that the scales belong to.
        scales: One for each of `quantizable_tensors`.
        held_out: Images that gave no scales.
        track: Shows the progress through the layers. Defaults to not showing it.
        weights: Name of a weight -> its codes; the others are rounded to nearest. Defaults to none.
    """
    nodes = list(dict.fromkeys(edge.node for edge in quantized_edges(model)))
    operators = {node.name: node.op_type for node in model.graph.node}

    def judge(name: str) -> Comparison:
        others = {other: Kept("fp32", "measured alone") for other in nodes if other != name}
        return held_out.judge(quantize(model, scales, weights=weights, base="fp32", kept=others).model)

    return sorted(
        (LayerCost.of(name, operators[name], judge(name)) for name in track(nodes)), key=lambda cost: -cost.noise
    )


def select_layers(
    costs: Sequence[LayerCost],
    judge: Callable[[Mapping[str, Kept]], Judged],
    budget: Budget,
    most_convs: int,
    precision: str = "fp16",
    replaced: str = "INT8",
    min_share: float = _MIN_SHARE,
) -> Selection:
    """Return the fewest layers to keep in float that meet a budget, the costliest first.

    Bisects over the number of layers of the ranking, as keeping more does not cost accuracy. If the budget cannot be
    met, all candidates are kept.

    Args:
        costs: From `measure_layers`.
        judge: Compares the model with some layers kept on held-out images.
        budget: The budget.
        most_convs: Largest number of Convs to keep; other layers are not limited.
        precision: The precision of the kept layers. Defaults to ``"fp16"``.
        replaced: The precision that they would have. Defaults to ``"INT8"``.
        min_share: Layers with a smaller share of the noise are not considered. Defaults to a hundredth.
    """
    whole = sum(cost.noise for cost in costs)
    ranking: list[LayerCost] = []
    for cost in costs:
        full = cost.op == "Conv" and sum(c.op == "Conv" for c in ranking) >= most_convs
        if 0 < cost.noise >= min_share * whole and not full:
            ranking.append(cost)

    def why(cost: LayerCost) -> str:
        share = cost.noise / whole if math.isfinite(cost.noise) else 1.0
        return f"kept: {share:.0%} of the {replaced} noise ({cost.sqnr_db:.1f} dB alone)"

    def selection(count: int) -> Selection:
        kept = {cost.node: Kept(precision, why(cost)) for cost in ranking[:count]}
        comparison = judge(kept)
        return Selection(kept, comparison, budget.met_by(comparison), len(ranking))

    best = selection(len(ranking))
    low, high = 0, len(ranking)
    while best.met and low < high:
        middle = (low + high) // 2
        candidate = selection(middle)
        if candidate.met:
            best, high = candidate, middle
        else:
            low = middle + 1
    return best
