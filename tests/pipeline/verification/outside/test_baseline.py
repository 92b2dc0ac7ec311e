"""What got worse since an earlier verdict is found, and noise is not taken for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.errors import DataError
from export.metrics.confidence import McNemar
from pipeline.artifacts.parity_report import MOST_CHANGED, Hop, ImageNoise, ParityReport, overall_verdict
from pipeline.verification.outside.baseline import Change, changes_since, changes_table

INT8 = Hop(
    "from_keras", "train/model.keras", "quantize/model.int8.onnx", "onnxruntime", "int8", 400, "pass",
    top1_agreement=0.99, max_abs=0.1, relative_error=0.02, sqnr_db=30.0, changed=(1, 2, 3, 4), accuracy_candidate=0.9,
    accuracy_reference=0.9, mcnemar=McNemar(2, 2, 1.0), image_noise=ImageNoise(30.0, 20.0, 30.0, 4.0, ()),
)  # fmt: skip
FP32 = replace(INT8, candidate="export/model.onnx", precision="fp32", relative_error=1e-6, relative_limit=1e-5)


def report(*hops: Hop, **changed: object) -> ParityReport:
    fields = {"images_sha256": "f" * 64, "subjects": {"train/model.keras": "a" * 64}} | changed
    return ParityReport(overall_verdict(hops), {}, hops, **fields)  # type: ignore[arg-type]


def changes(old: Hop, new: Hop) -> list[tuple[str, str]]:
    return [(change.what, change.measure) for change in changes_since(report(old), report(new))]


def noise(mean: float, std: float = 4.0) -> ImageNoise:
    return ImageNoise(mean, mean - 10, mean, std, ())


def test_the_same_verdict_has_not_changed() -> None:
    assert changes(INT8, INT8) == []


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ((1, 2, 3, 4, 5, 6, 7, 8, 9), []),  # five more: p = 0.06
        ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10), [("worse", "agreement")]),  # six more: p = 0.03
        ((5, 6, 7, 8, 9, 10), []),  # six more, four back
        ((11, 12, 13, 14), []),
    ],
)
def test_agreement_is_held_against_the_images_that_changed(
    changed: tuple[int, ...], found: list[tuple[str, str]]
) -> None:
    new = replace(INT8, changed=changed, top1_agreement=1 - len(changed) / 400)
    assert changes(INT8, new) == found
    assert changes(new, INT8) == [("better", measure) for _, measure in found]


def test_where_not_every_changed_image_is_recorded_the_numbers_decide() -> None:
    recorded = tuple(range(MOST_CHANGED))
    many = replace(INT8, images=50_000, changed=recorded, top1_agreement=0.97)
    assert changes(many, replace(many, top1_agreement=0.968)) == [], "1,600 against 1,500 may be chance"
    assert changes(many, replace(many, top1_agreement=0.96)) == [("worse", "agreement")]
    few = replace(many, changed=recorded[:100], top1_agreement=0.998)
    assert changes(few, many) == [("worse", "agreement")]


def test_accuracy_is_held_against_all_images_that_changed_also_beyond_those_recorded() -> None:
    recorded = tuple(range(MOST_CHANGED))
    old = replace(
        INT8,
        images=50_000,
        changed=recorded,
        top1_agreement=0.8,
        accuracy_reference=0.8,
        accuracy_candidate=0.76,
        mcnemar=McNemar(2_000, 0, 0.0),
    )
    new = replace(old, accuracy_candidate=0.757, mcnemar=McNemar(2_150, 0, 0.0))
    assert changes(old, new) == [], "150 net of up to 20,000"


def test_accuracy_that_is_lost_beyond_noise_is_found() -> None:
    many = tuple(range(40))
    old = replace(INT8, changed=many, mcnemar=McNemar(2, 2, 1.0))
    assert changes(old, replace(old, mcnemar=McNemar(30, 2, 0.0), accuracy_candidate=0.83)) == [("worse", "accuracy")]
    assert changes(old, replace(old, mcnemar=McNemar(8, 2, 0.1), accuracy_candidate=0.885)) == []  # 6 net of 40
    assert changes(old, replace(old, mcnemar=McNemar(2, 30, 0.0), accuracy_candidate=0.97)) == [("better", "accuracy")]


@pytest.mark.parametrize(
    ("mean", "std", "images", "found"),
    [
        (29.0, 4.0, 400, [("worse", "SQNR")]),  # half the interval is 0.55
        (29.5, 4.0, 400, []),
        (29.6, 0.1, 400, []),  # certain, and too small to matter
        (29.4, 0.1, 400, [("worse", "SQNR")]),
        (29.0, 4.0, 60, []),
        (31.0, 4.0, 400, [("better", "SQNR")]),
    ],
)
def test_sqnr_counts_beyond_noise_and_half_a_decibel(
    mean: float, std: float, images: int, found: list[tuple[str, str]]
) -> None:
    old = replace(INT8, images=images, image_noise=noise(30.0, std))
    assert changes(old, replace(old, image_noise=noise(mean, std))) == found


def test_fp32_within_its_limit_is_rounding() -> None:
    assert changes(FP32, replace(FP32, image_noise=noise(20.0))) == []
    assert changes(FP32, replace(FP32, image_noise=noise(20.0), relative_error=1e-3)) == [("worse", "SQNR")]


def test_noise_alone_is_rarely_taken_for_a_change() -> None:
    draw = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        samples = draw.normal(30, 5, (2, 60))
        means = [noise(float(row.mean()), float(row.std(ddof=1))) for row in samples]
        old = replace(INT8, images=60, image_noise=means[0])
        wrong += bool(changes(old, replace(old, image_noise=means[1])))
    assert 1 <= wrong <= 20  # 5 % of 200


def test_a_verdict_that_fails_now_is_worse() -> None:
    failed = replace(INT8, verdict="fail", why="it does not load", top1_agreement=None, image_noise=None)
    assert changes(INT8, failed) == [("worse", "verdict")]
    assert changes(failed, INT8) == [("better", "verdict")]


def test_what_is_gone_or_new_is_said_and_is_not_worse() -> None:
    engine = replace(INT8, candidate="build/rtx/int8.plan", backend="tensorrt")
    idle = replace(engine, verdict="not run", why="no GPU", top1_agreement=None)
    found = changes_since(report(INT8, engine), report(INT8, idle))
    assert found == [Change("gone", "build/rtx/int8.plan", "train/model.keras", why="not run: no GPU")]
    assert [change.what for change in changes_since(report(INT8, engine), report(INT8))] == ["gone"]
    assert [change.what for change in changes_since(report(INT8, idle), report(INT8, engine))] == ["new"]
    assert changes_since(report(INT8, idle), report(INT8, idle)) == []


def test_one_regression_is_told_where_it_is_and_not_at_every_step_behind_it() -> None:
    fp16 = replace(INT8, candidate="quantize/model.fp16.onnx", precision="fp16")
    steps = [
        replace(fp16, kind="step", reference=FP32.candidate),
        replace(INT8, kind="step", reference=fp16.candidate),
    ]
    worse = noise(20.0)
    old = report(FP32, fp16, INT8, *steps)
    for name in (fp16.candidate, INT8.candidate):
        touched = [
            replace(hop, image_noise=worse) if name in (hop.candidate, hop.reference) else hop for hop in old.hops
        ]
        found = changes_since(old, report(*touched))
        assert [(c.what, c.run, c.reference) for c in found] == [("worse", name, INT8.reference)]
    alone = [replace(hop, image_noise=worse) if hop == steps[1] else hop for hop in old.hops]
    (only,) = changes_since(old, report(*alone))
    assert (only.what, only.reference) == ("worse", fp16.candidate), "nothing else tells it"
    idle = [replace(hop, verdict="not run", why="a is wrong") if hop == steps[1] else hop for hop in old.hops]
    (only,) = changes_since(old, report(*idle))
    assert (only.what, only.why) == ("gone", "not judged: a is wrong")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"subjects": {"train/model.keras": "b" * 64}},
            r"same Keras model \(sha256 aaaaaa.*one of bbbbbb",
        ),
        ({"images_sha256": "e" * 64}, r"same test images \(sha256 ffffffffffff\). Received: eeeeeeeeeeee"),
        ({"images_sha256": ""}, "a digest that is not recorded"),
    ],
)
def test_a_baseline_of_another_model_or_other_images_is_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        changes_since(report(INT8, **changed), report(INT8))


def test_the_table_begins_with_what_is_worse() -> None:
    found = changes_since(
        report(INT8, replace(FP32, verdict="fail")), report(FP32, replace(INT8, image_noise=noise(25.0)))
    )
    lines = changes_table(found).splitlines()
    assert lines[1].split()[:2] == ["worse", "quantize/model.int8.onnx"]
    assert "30.0 dB  25.0 dB  -5.0 dB, 95 %: -5.6 to -4.4" in lines[1]
    assert lines[2].split()[:2] == ["better", "export/model.onnx"]


def test_sqnr_of_few_images_is_held_against_the_quantile_of_t() -> None:
    few = replace(INT8, images=5)  # 2.306 * 4 dB * sqrt(2 / 5) = 5.83 dB, with 8 degrees of freedom
    assert changes(few, replace(few, image_noise=noise(24.25))) == []
    assert changes(few, replace(few, image_noise=noise(24.0))) == [("worse", "SQNR")]


def test_only_fp32_has_rounding_below_a_limit() -> None:
    limited = replace(INT8, relative_limit=0.1)
    assert changes(limited, replace(limited, image_noise=noise(20.0))) == [("worse", "SQNR")]


def test_a_step_has_no_accuracy_of_its_own() -> None:
    changed = tuple(range(40))
    old = replace(INT8, kind="step", changed=changed, top1_agreement=0.9)
    new = replace(old, accuracy_candidate=0.8, mcnemar=McNemar(40, 0, 0.0))
    assert changes(replace(old, kind="from_keras"), replace(new, kind="from_keras")) == [("worse", "accuracy")]
    assert changes(old, new) == []
