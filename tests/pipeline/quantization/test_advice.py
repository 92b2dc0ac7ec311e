"""What is advised where INT8 misses its thresholds: the keys that the recipe turned off, and none that it did not."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.quantization.advice import missed_budget, turned_off
from pipeline.recipe.schema import Quantize

RAISE = "To keep more convolutions in FP16 raise quantize.max_kept (now 0.1)."


@pytest.mark.parametrize(
    ("changed", "advised"),
    [
        ({}, ()),
        ({"effort": "fast"}, ("quantize.effort=full",)),
        ({"rounding": "nearest"}, ("quantize.rounding=second_order",)),
        ({"shift": "never"}, ("quantize.shift=auto",)),
        ({"shift": "conv"}, ("quantize.shift=auto",)),
        ({"shift": "always"}, ()),  # which leaves nothing out
        ({"method": "minmax"}, ("quantize.method=auto",)),
        ({"equalize": False}, ("quantize.equalize=true",)),
        ({"bias_correction": False}, ("quantize.bias_correction=true",)),
        ({"trunk": "fp16"}, ("quantize.trunk=fp32",)),
        ({"shift": "never", "effort": "fast"}, ("quantize.effort=full", "quantize.shift=auto")),
        ({"rounding_images": 8, "max_kept": 0.0, "sensitivity": "never"}, ()),
    ],
)
def test_what_the_recipe_turned_off_is_advised(changed: dict[str, Any], advised: tuple[str, ...]) -> None:
    assert turned_off(Quantize(**changed)) == advised


def test_what_was_turned_off_comes_before_layers_in_float() -> None:
    off = ("quantize.effort=full", "quantize.shift=auto")
    said = missed_budget("int8", "SQNR", "quantize.max_kept", 0.1, off)
    words = "Set quantize.effort=full, quantize.shift=auto, which this recipe turned off."
    assert said == f"INT8 misses verify.thresholds.int8 on held-out images (SQNR). {words} {RAISE}"
    all_kept = missed_budget("int8", "SQNR", "quantize.max_kept", 1.0, off)
    assert all_kept.endswith(words), "there is something left to try, so no threshold is to be relaxed"


def test_every_key_that_was_turned_off_is_named() -> None:
    off = tuple(f"quantize.key{number}=true" for number in range(7))
    assert ", ".join(off) in missed_budget("int8", "SQNR", "quantize.max_kept", 0.1, off)
