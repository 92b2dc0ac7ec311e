"""A file answers for an image alike, alone and in any batch; what does not is found without a reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.errors import DeviceUnavailableError, RunnerError
from export.metrics.distances import FloatNoise
from pipeline.artifacts.parity_report import FAIL, PASS
from pipeline.runners.base import Outputs, softmax
from pipeline.runners.onnxruntime import OnnxRunner
from pipeline.verification.checks.consistency import IMAGES, SIZES, check_consistency
from pipeline.verification.checks.thresholds import Finding
from tests import tiny_onnx

Rows = Callable[[np.ndarray], np.ndarray]
WEIGHTS = np.random.default_rng(1).normal(0, 1, (2 * 2 * 3, 4))
PIXELS = np.random.default_rng(2).integers(0, 256, (40, 2, 2, 3), dtype=np.uint8)


def linear(pixels: np.ndarray) -> np.ndarray:
    return (pixels.reshape(len(pixels), -1) @ WEIGHTS).astype(np.float32)


class Fake:
    """A runner that answers with a function, and counts the images that it was given."""

    backend, precision, max_batch, graph_top_k, classes, metadata = "fake", "fp32", 64, 0, 4, None

    def __init__(self, rows: Rows) -> None:
        self.rows, self.images, self.sizes = rows, 0, set[int]()

    def infer(self, pixels: np.ndarray) -> Outputs:
        self.images += len(pixels)
        self.sizes.add(len(pixels))
        logits = self.rows(pixels)
        return Outputs(logits, softmax(logits))


def check(
    rows: Rows, whole: np.ndarray | None = None, precision: str = "fp32", sizes: tuple[int, ...] = ()
) -> list[Finding]:
    logits = linear(PIXELS) if whole is None else whole
    return check_consistency(Fake(rows), PIXELS, logits, sizes, precision, None, linear(PIXELS))  # type: ignore[arg-type]


def failures(findings: list[Finding]) -> str:
    return "; ".join(finding.text for finding in findings if finding.verdict == FAIL)


def test_a_file_that_answers_alike_passes_every_check_within_six_forward_passes() -> None:
    fake = Fake(linear)
    findings = check_consistency(fake, PIXELS, linear(PIXELS), (), "fp32")  # type: ignore[arg-type]
    assert {finding.verdict for finding in findings} == {PASS}
    assert [finding.text for finding in findings if finding.text] == [
        "16 images: the same answers alone, again, in another order, as 8 copies and in batches of 2, 3, 5, 7"
    ]
    assert fake.images <= 6 * IMAGES
    assert {1, *SIZES} <= fake.sizes


def test_the_sizes_of_a_profile_are_run_with_fewer_images_too() -> None:
    fake = Fake(linear)
    findings = check_consistency(fake, PIXELS, linear(PIXELS), (1, 4, 32, 33), "fp32")  # type: ignore[arg-type]
    assert {4, 32, 33} <= fake.sizes
    assert "in batches of 2, 3, 5, 7, 4, 32, 33" in findings[0].text


def test_one_image_is_enough_to_check() -> None:
    findings = check_consistency(Fake(linear), PIXELS[:1], linear(PIXELS[:1]), (), "fp32")  # type: ignore[arg-type]
    assert {finding.verdict for finding in findings} == {PASS}


def first_row_for_all(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(linear(pixels[:1]), len(pixels), axis=0)


def by_batch_statistics(pixels: np.ndarray) -> np.ndarray:
    return linear(pixels) - linear(pixels).mean(axis=0)


def by_place(pixels: np.ndarray) -> np.ndarray:
    return linear(pixels) + 100 * np.arange(len(pixels), dtype=np.float32)[:, None]


def sorted_rows(pixels: np.ndarray) -> np.ndarray:
    rows = linear(pixels)
    return rows[rows[:, 0].argsort()]


def wrong_in_a_batch_of_five(pixels: np.ndarray) -> np.ndarray:
    return linear(pixels)[::-1] if len(pixels) == 5 else linear(pixels)


def wrong_beyond_the_profile(pixels: np.ndarray) -> np.ndarray:
    return linear(pixels[np.arange(len(pixels)) % 32])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (first_row_for_all, "16 different images have the answer of image 0, bit for bit"),
        (first_row_for_all, "an image alone has another answer than in a batch"),
        (by_batch_statistics, "an image alone has another answer than in a batch"),
        (by_place, "8 copies of one image have different answers"),
        (sorted_rows, "another order of the images changes the answers"),
        (wrong_in_a_batch_of_five, "in a batch of another size"),
        (wrong_in_a_batch_of_five, "in a batch of 5"),
        (wrong_beyond_the_profile, "in a batch of 33"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_answer_that_depends_on_the_batch_is_named_with_size_and_numbers(
    rows: Rows, said: str, precision: str
) -> None:
    whole = np.concatenate([rows(PIXELS[:32]), rows(PIXELS[32:])])
    text = failures(check(rows, whole, precision, (1, 4, 32, 33)))
    assert said in text
    assert "relative error" in text or "SQNR" in text


def test_answers_that_change_from_run_to_run_are_found() -> None:
    draw = np.random.default_rng(0)
    text = failures(check(lambda pixels: linear(pixels) + draw.normal(0, 1, (len(pixels), 4)).astype(np.float32)))
    assert "a repeated run gives other answers: relative error" in text


def test_rounding_is_no_failure_but_a_hundred_times_of_it_is() -> None:
    draw = np.random.default_rng(0)

    def noisy(share: float) -> Rows:
        return lambda pixels: (linear(pixels) * (1 + share * draw.uniform(-1, 1, (len(pixels), 4)))).astype(np.float32)

    for precision, share in (("fp32", 3e-6), ("fp16", 3e-3), ("int8", 3e-2)):
        findings = check(noisy(share), precision=precision)
        assert failures(findings) == ""
        assert any(finding.text.startswith("alone within rounding: ") for finding in findings)
        assert failures(check(noisy(100 * share), precision=precision)) != ""


@pytest.mark.parametrize(("alone", "said"), [(True, "image 30 not finite either"), (False, "image 30 finite")])
def test_a_nan_in_one_row_is_named_with_its_image_and_whether_it_stays_alone(alone: bool, said: str) -> None:
    whole = linear(PIXELS)
    whole[30, 2] = np.nan

    def rows(pixels: np.ndarray) -> np.ndarray:
        logits = linear(pixels)
        logits[(pixels == PIXELS[30]).all(axis=(1, 2, 3)) & alone] = np.nan
        return logits

    text = failures(check(rows, whole))
    assert "NaN or infinite logits for 1 of 40 images (30)" in text
    assert said in text


def test_a_nan_that_comes_only_in_some_batches_is_found() -> None:
    def rows(pixels: np.ndarray) -> np.ndarray:
        logits = linear(pixels)
        if len(pixels) == 3:
            logits[1] = np.nan
        return logits

    assert "in a batch of 3 is finite once and not finite once" in failures(check(rows))


def test_a_batch_that_does_not_run_fails_and_a_device_that_is_gone_is_no_verdict() -> None:
    def only(size: int) -> Rows:
        def rows(pixels: np.ndarray) -> np.ndarray:
            if len(pixels) == size:
                raise RunnerError("Expected another size.")
            return linear(pixels)

        return rows

    assert failures(check(only(7))) == "a batch of 7 images does not run: Expected another size."
    assert "gives logits of shape (1, 4)" in failures(check(lambda pixels: linear(pixels[:1])))

    def gone(pixels: np.ndarray) -> np.ndarray:
        raise DeviceUnavailableError("Expected a GPU.")

    with pytest.raises(DeviceUnavailableError):
        check(gone)


def test_equal_images_may_have_equal_answers() -> None:
    pixels = np.repeat(PIXELS[:1], 4, axis=0)
    findings = check_consistency(Fake(linear), pixels, linear(pixels), (), "fp32")  # type: ignore[arg-type]
    assert failures(findings) == ""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_exported_files_pass(precision: str, tmp_path: Path) -> None:
    path, pixels = tiny_onnx.write(tmp_path / "model.onnx", precision, more_convolutions=2), tiny_onnx.pixels(40)
    with OnnxRunner(path, precision=precision, exact=precision == "int8") as runner:
        findings = check_consistency(runner, pixels, runner.infer(pixels).logits, (), precision)
    assert failures(findings) == ""


def test_a_last_row_that_is_the_first_ones_is_found() -> None:
    def padded(pixels: np.ndarray) -> np.ndarray:
        rows = linear(pixels)
        if len(pixels) in SIZES:
            rows[-1] = rows[0]
        return rows

    assert "in a batch of another size" in failures(check(padded))


def test_different_images_may_have_a_value_in_common() -> None:
    def masked(pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([linear(pixels)[:, 1:], np.full((len(pixels), 1), -5, np.float32)], axis=1)

    assert failures(check(masked, masked(PIXELS))) == ""


def test_a_model_that_amplifies_rounding_may_differ_by_its_own_noise() -> None:
    def moved(pixels: np.ndarray) -> np.ndarray:
        return linear(pixels) * np.float32(1 + 5e-5)

    noise = FloatNoise(5e-5, "float32")
    findings = [
        check_consistency(Fake(moved), PIXELS, linear(PIXELS), (), "fp32", given)  # type: ignore[arg-type]
        for given in (None, noise)
    ]
    assert failures(findings[0]) != ""
    assert failures(findings[1]) == ""


@pytest.mark.parametrize("spread", [1e-7, None])
def test_one_answer_for_all_is_no_fault_where_the_reference_hardly_tells_images_apart(spread: float | None) -> None:
    answer = np.array([[3.0, -1.0, 0.5, 2.0]], np.float32)

    def equal(pixels: np.ndarray) -> np.ndarray:
        return np.repeat(answer, len(pixels), axis=0)

    reference = None if spread is None else equal(PIXELS) + spread * linear(PIXELS) / np.abs(linear(PIXELS)).max()
    findings = check_consistency(Fake(equal), PIXELS, equal(PIXELS), (), "fp32", None, reference)  # type: ignore[arg-type]
    assert {finding.verdict for finding in findings} == {PASS}
    assert any("16 different images have the answer of image 0" in finding.text for finding in findings)
