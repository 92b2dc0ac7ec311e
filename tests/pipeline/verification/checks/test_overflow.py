"""What FP16 cannot hold fails the verdict, although a CPU computes it in FP32."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.errors import ParityError
from pipeline.recipe.schema import VerifyThresholds
from pipeline.runners.open import open_runner
from pipeline.verification.evaluate import evaluate
from pipeline.verification.explain.exceeding import IMAGES, find_extreme
from pipeline.verification.outside.assertion import assert_parity
from pipeline.verification.parity import Candidate, Reference, judge
from tests import tiny_onnx

PIXELS = tiny_onnx.pixels(24)
SOUND = {"kernel": 1.0, "bias": 1.0, "dense": 1.0}
BEYOND = {"kernel": 8192.0, "bias": 8192.0, "dense": 1 / 8192}
NEAR = {"kernel": 2048.0, "bias": 2048.0, "dense": 1 / 2048}


def write(path: Path, factors: dict[str, float], *, negative: bool = False, batch: object = "batch") -> Path:
    """Write the FP16 classifier with other units between its layers, or with values that the ReLU drops all."""
    model = tiny_onnx.classifier("fp16", batch)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float32) * factors.get(tensor.name, 1.0)
        if negative and tensor.name in ("kernel", "bias"):
            values = -np.abs(values)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    onnx.save(model, path)
    return path


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write(tmp_path / "sound.onnx", SOUND)


@pytest.fixture
def beyond(tmp_path: Path) -> Path:
    return write(tmp_path / "beyond.onnx", BEYOND)


def test_the_layer_is_found_although_the_answers_are_finite(beyond: Path, sound: Path) -> None:
    with open_runner(beyond, "onnxruntime", "fp16") as runner:
        assert np.isfinite(runner.infer(PIXELS).logits).all(), "a CPU computes FP16 in FP32"
    found = find_extreme(beyond, PIXELS)
    assert found is not None
    assert (found.layer, found.images, found.changed) == ("conv", IMAGES, IMAGES)
    assert found.largest > 65_520
    assert find_extreme(sound, PIXELS) is None


def test_a_file_without_fp16_has_nothing_to_exceed(tmp_path: Path) -> None:
    assert find_extreme(tiny_onnx.write(tmp_path / "m.onnx"), PIXELS) is None


def test_what_a_relu_drops_is_no_fault(tmp_path: Path) -> None:
    found = find_extreme(write(tmp_path / "m.onnx", BEYOND, negative=True), PIXELS)
    assert found is not None
    assert (found.layer, found.changed) == ("conv", 0)
    assert "changes no answer" in found.text


def test_the_batch_size_of_the_file_is_kept(tmp_path: Path) -> None:
    found = find_extreme(write(tmp_path / "m.onnx", BEYOND, batch=5), PIXELS)
    assert found is not None
    assert (found.images, found.changed) == (15, 15)


def test_a_verdict_fails_beyond_and_notes_what_is_near(tmp_path: Path, beyond: Path, sound: Path) -> None:
    near = write(tmp_path / "near.onnx", NEAR)
    with open_runner(sound, "onnxruntime", "fp16") as runner:
        logits = runner.infer(PIXELS).logits
    reference = Reference("keras", "", PIXELS, logits.argmax(axis=1), logits)
    said = {}
    for path in (beyond, near, sound):
        opened = partial(open_runner, path, "onnxruntime", "fp16")
        one = Candidate(path.name, "onnxruntime", "fp16", "", None, opened, extreme=partial(find_extreme, path))
        answers = {one.run_name: evaluate(one, PIXELS, 8, lambda _: None)}
        said[path.stem] = judge([one], answers, reference, VerifyThresholds()).hops[0]
    assert said["beyond"].verdict == "fail"
    assert "FP16 overflow: values of layer 'conv' reach" in said["beyond"].why
    assert said["near"].verdict == said["sound"].verdict != "fail"
    assert "more than half of FP16's largest" in said["near"].note
    assert said["sound"].note == ""


def test_assert_parity_fails_too(beyond: Path, sound: Path) -> None:
    assert_parity(sound, sound, PIXELS)
    with pytest.raises(ParityError, match="FP16 overflow"):
        assert_parity(sound, beyond, PIXELS)
