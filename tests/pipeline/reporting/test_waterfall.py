"""Which step cost how much, and the distances of every step."""

from __future__ import annotations

import pytest

from pipeline.artifacts.parity_report import Hop
from pipeline.reporting.waterfall import chains, step_costs
from tests.pipeline.report_artifacts import ONNX, PLAN, Artifacts, hop, not_compared

KERAS = "train/model.keras"


def step(candidate: str, precision: str, reference: str, **numbers: object) -> Hop:
    return hop(candidate, precision, kind="step", reference=reference, **numbers)


def way(**numbers: object) -> list[Hop]:
    """Keras → FP32 → INT8, where INT8's step adds nine times the noise of the export; together 20 dB."""
    return [
        hop(ONNX[0], "fp32", sqnr_db=30.0, top1_agreement=0.995),
        hop(ONNX[2], "int8", **{"sqnr_db": 20.0, "top1_agreement": 0.95} | numbers),
        step(ONNX[2], "int8", ONNX[0], sqnr_db=20.4576, top1_agreement=0.96),
    ]


def test_each_step_has_its_share_of_the_noise(artifacts: Artifacts) -> None:
    artifacts.hops = way()
    page = artifacts.write().page()
    bars = page.chart("From Keras to model.int8.onnx")
    assert [(bar.label, bar.shown, bar.more, bar.kind) for bar in bars] == [
        ("Keras → model.onnx", "10.0 %", "30.0 dB, 1 answer changed", "fp32"),
        ("model.onnx → model.int8.onnx", "90.0 %", "20.5 dB, 8 answers changed", "int8"),
    ]
    assert [round(bar.end or 0) for bar in bars] == [11, 100]
    assert "From end to end 20.0 dB, 10 answers changed." in page.section("Parity").text


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        (23.5, "From end to end 23.5 dB, the steps alone 20.0 dB: their errors partly cancel, 10 answers changed."),
        (15.0, "From end to end 15.0 dB, the steps alone 20.0 dB: their errors add up to more, 10 answers changed."),
        (20.9, "From end to end 20.9 dB, 10 answers changed."),
    ],
)
def test_steps_that_do_not_add_up_say_so(whole: float, words: str) -> None:
    (chain,) = chains(way(sqnr_db=whole))
    costs = step_costs(chain)
    assert costs is not None
    assert costs.remark == words


def test_every_file_that_no_other_was_made_from_has_its_way() -> None:
    hops = [
        *way(),
        hop(PLAN, "int8"),
        step(PLAN, "int8", ONNX[2]),
        hop(ONNX[1], "fp16"),
        step(ONNX[1], "fp16", ONNX[0]),
    ]
    ways = {chain.whole.candidate: [one.candidate for one in chain.steps] for chain in chains(hops)}
    assert ways == {PLAN: [ONNX[0], ONNX[2], PLAN], ONNX[1]: [ONNX[0], ONNX[1]]}


def test_a_way_with_a_step_that_was_not_compared_is_not_drawn() -> None:
    assert chains([not_compared(ONNX[0], "fp32", "fail", "it died"), *way()[1:]]) == []
    assert chains(way()[:1]) == [], "the export alone has one step"


def test_equal_steps_cost_nothing_and_nan_has_no_share() -> None:
    equal = {"sqnr_db": None, "max_abs": 0.0}
    hops = [
        hop(ONNX[0], "fp32", **equal),
        hop(ONNX[2], "int8", sqnr_db=20.0),
        step(ONNX[2], "int8", ONNX[0], sqnr_db=20.0),
    ]
    (chain,) = chains(hops)
    costs = step_costs(chain)
    assert costs is not None
    assert [bar.shown for bar in costs.chart.bars] == ["0.0 %", "100.0 %"]
    assert costs.chart.bars[0].more.startswith("equal, ")
    for numbers in (equal, {"sqnr_db": None, "finite": False, "max_abs": None}):
        hops = [
            hop(ONNX[0], "fp32", **equal),
            hop(ONNX[2], "int8", **numbers),
            step(ONNX[2], "int8", ONNX[0], **numbers),
        ]
        (chain,) = chains(hops)
        assert step_costs(chain) is None


@pytest.mark.parametrize("value", [1e308, -1e308])
def test_distances_that_no_power_can_hold(value: float) -> None:
    (chain,) = chains([hop(ONNX[0], "fp32", sqnr_db=value), *way()[1:]])
    assert step_costs(chain) is not None


def test_a_ring_of_references_ends() -> None:
    hops = [hop(ONNX[0], "fp32"), hop(ONNX[2], "int8"), step(ONNX[0], "fp32", ONNX[2]), step(ONNX[2], "int8", ONNX[0])]
    assert chains(hops) == []


def test_all_distances_are_in_a_table_of_their_own(artifacts: Artifacts) -> None:
    more = {"mean_abs": 0.0314, "relative_l2": 0.0125, "kl": 0.0021, "top5_agreement": 0.9975}
    artifacts.hops = [hop(ONNX[0], "fp32", **more), not_compared(ONNX[1], "fp16", "fail", "it died")]
    (cells,) = artifacts.write().page().rows("Parity", 1)
    assert cells == {
        **{"candidate": ONNX[0], "against": KERAS, "max. error": "2.50e-01", "mean error": "3.14e-02"},
        **{"rel. L2": "1.25e-02", "cosine": "0.999000", "KL, nats": "2.10e-03", "top-1": "98.50%", "top-5": "99.75%"},
        **{"accuracy of it": "91.50%", "of the other": "92.50%", "answers changed": "3"},
    }


def test_runs_that_agree_with_themselves_are_folded_away(artifacts: Artifacts) -> None:
    none = dict.fromkeys(("finite", "max_abs", "relative_error", "cosine", "sqnr_db", "top1_agreement", "mcnemar"))
    given = none | {"kind": "consistency", "reference": "itself", "certainty": "batches of 1 and 3 agree"}
    artifacts.hops += [hop(name, precision, **given) for name, precision in zip(ONNX, ("fp32", "fp16", "int8"))]
    page = artifacts.write().page()
    assert [cells["candidate"] for cells in page.rows("Parity")] == list(ONNX[:3])
    assert page.rows("Parity", 2)[0] == {
        "verdict": "pass",
        "run": ONNX[0],
        "what was compared": "Batches of 1 and 3 agree.",
    }
    assert "3 runs agree with themselves" in [node.text for node in page.section("Parity").all("summary")]
