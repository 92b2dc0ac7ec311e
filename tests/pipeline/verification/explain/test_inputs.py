"""Another preprocessing is found by running the reference on what a file with it would feed."""

from __future__ import annotations

import numpy as np
import pytest

from export.preprocessing import PreprocessingSpec
from pipeline.verification.explain.inputs import explain_inputs, hypotheses

SPECS = [PreprocessingSpec.from_mode(mode) for mode in ("caffe", "tf", "torch", "unit", "none")]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
WEIGHTS = np.random.default_rng(1).normal(0, 1, (8 * 8 * 3, 24))
HEAD = np.random.default_rng(2).normal(0, 1, (24, 5))


def predict(inputs: np.ndarray) -> np.ndarray:
    """A network that no constant and no factor on its inputs passes through."""
    return np.maximum(inputs.reshape(len(inputs), -1) @ WEIGHTS, 0) @ HEAD


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.mode)
def test_every_hypothesis_is_found_by_its_own_logits(spec: PreprocessingSpec) -> None:
    for hypothesis in hypotheses(spec):
        inputs = hypothesis.inputs(PIXELS)
        found = explain_inputs(predict, PIXELS, predict(inputs), spec, "fp32", "first")
        # Two hypotheses may say the same of one spec: then the first counts.
        same = [other for other in hypotheses(spec) if np.allclose(other.inputs(PIXELS), inputs, rtol=1e-5, atol=1e-4)]
        assert [explanation.cause for explanation in found] == [same[0].cause], hypothesis.what
        assert found[0].layer == ("first" if same[0].in_weights else "")


def test_what_the_card_says_is_no_fault() -> None:
    for spec in SPECS:
        assert explain_inputs(predict, PIXELS, predict(spec.apply(PIXELS)), spec, "fp32", "") == []


def test_a_change_that_is_no_hypothesis_is_not_taken_for_one() -> None:
    spec = SPECS[0]
    for inputs in (spec.apply(PIXELS) * 3 + 5, spec.apply(PIXELS)[::-1], np.tanh(spec.apply(PIXELS))):
        assert explain_inputs(predict, PIXELS, predict(inputs), spec, "fp32", "") == []


def test_int8_is_explained_in_spite_of_its_noise() -> None:
    spec = SPECS[0]
    logits = predict(spec.apply(PIXELS[..., ::-1]))
    received = logits + np.random.default_rng(3).normal(0, 0.03 * logits.std(), logits.shape)
    assert explain_inputs(predict, PIXELS, received, spec, "int8", "")[0].cause == "channel order"
    assert explain_inputs(predict, PIXELS, received, spec, "fp32", "") == []  # too far for FP32


def test_grey_models_have_no_channel_order() -> None:
    spec = PreprocessingSpec("RGB", (33.0,) * 3, (1 / 78,) * 3, grey=True)
    assert "channel order" not in [hypothesis.cause for hypothesis in hypotheses(spec)]
