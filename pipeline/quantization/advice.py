"""What of the recipe's section ``quantize`` may bring INT8 or FP16 closer to its thresholds, in words and overrides."""

from collections.abc import Mapping, Sequence

from export.words import listed, sentence
from pipeline.recipe.schema import Quantize

# Values with which the search leaves nothing out, the first of which is advised; the keys that gain most come first.
_TRIES_ALL: Mapping[str, tuple[str | bool, ...]] = {
    "effort": ("full",),
    "rounding": ("second_order",),
    "shift": ("auto", "always"),
    "method": ("auto",),
    "equalize": (True,),
    "bias_correction": (True,),
    "trunk": ("fp32",),
}


def turned_off(settings: Quantize) -> tuple[str, ...]:
    """Return what the recipe keeps the search for INT8 from trying, as the overrides that let it try all.

    Args:
        settings: the recipe's section.

    Returns:
        overrides for ``--set``, such as ``"quantize.rounding=second_order"``; empty if all is tried.
    """
    return tuple(
        f"quantize.{key}={values[0] if isinstance(values[0], str) else 'true'}"
        for key, values in _TRIES_ALL.items()
        if getattr(settings, key) not in values
    )


def missed_budget(precision: str, budget: str, key: str, kept: float, off: Sequence[str] = ()) -> str:
    """Say what to do where a graph misses its budget on held-out images.

    Args:
        precision: "int8" or "fp16".
        budget: the budget as text.
        key: recipe key of the share of convolutions that may stay in more bits.
        kept: its value; at 1 it cannot be raised.
        off: overrides that let the search try more, from `turned_off`. Defaults to none.
    """
    more = {"int8": "FP16", "fp16": "FP32"}[precision]
    steps = [f"set {listed(off, most=len(off))}, which this recipe turned off"] if off else []
    if kept < 1:
        steps.append(f"to keep more convolutions in {more} raise {key} (now {kept:g})")
    elif not off:
        steps.append(
            f"all convolutions may stay in {more} already ({key}): add calibration images, or relax the thresholds"
        )
    remedy = " ".join(sentence(step) for step in steps)
    return f"{precision.upper()} misses verify.thresholds.{precision} on held-out images ({budget}). {remedy}"
