"""The project's targets: met, missed, or open and why."""

from dataclasses import replace
from typing import Literal, cast

from benchmarks.gpu.markdown import judge_targets, target_table
from export.tensorrt.sidecar import Precision
from pipeline.artifacts.gpu_evidence import Measures, TimedRow
from pipeline.artifacts.parity_report import Parity, overall_verdict, thresholds_by_precision
from pipeline.recipe.schema import VerifyThresholds
from tests.made_records import make_hop


def row(name: str, precision: str, measures: str, batch: int, speed: float, beside: str = "") -> TimedRow:
    variant: Literal["throughput", "latency"] = "latency" if batch == 1 else "throughput"
    return TimedRow(
        name, cast(Precision, precision), variant, batch, 1, cast(Measures, measures), "", beside=beside, n=500,
        p50_ms=1.0, p90_ms=1.0, p99_ms=0.34, mean_ms=1.0, images_per_second=speed, p99_is_near_max=False,
    )  # fmt: skip


ROWS = [
    row("engine", "fp16", "compute", 256, 30_000),
    row("engine", "fp16", "stream", 256, 28_500),
    row("engine", "int8", "compute", 256, 70_000),
    row("engine", "int8", "stream", 256, 61_000),
    row("engine", "int8", "infer", 1, 3_000),
    row("engine", "fp16", "compute", 256, 26_000, "graphs"),
    row("PyTorch graphs", "fp16", "compute", 256, 20_000, "graphs"),
    row("engine", "fp16", "compute", 256, 30_000, "compile"),
    row("PyTorch compile", "fp16", "compute", 256, 29_000, "compile"),
]


def parity(*verdicts: str) -> Parity:
    hops = tuple(make_hop(f"fp16-{number}", verdict) for number, verdict in enumerate(verdicts))
    return Parity(overall_verdict(hops), thresholds_by_precision(VerifyThresholds()), hops)


def test_targets_are_judged() -> None:
    judged = judge_targets(ROWS, parity("pass", "pass"), "NVIDIA H200", resnet50=True)
    assert [(one.measured, one.met) for one in judged] == [
        (None, None),
        (0.95, True),
        (0.8714, False),
        (0.34, True),
        (61_000, True),
        (2.3333, True),
        (2.1404, True),
        (1.3, True),  # PyTorch is held against what took turns with it
        (1.0345, False),
        (1.0, True),
    ]


def test_absolute_targets_are_for_one_gpu_and_model() -> None:
    elsewhere = judge_targets(ROWS, None, "NVIDIA L4", resnet50=True)
    assert [one.met for one in elsewhere] == [None, True, False, None, None, True, True, True, False, None]
    assert elsewhere[3].why == "measured on another GPU or model than the target is for"
    h100 = judge_targets(ROWS, None, "NVIDIA H100 PCIe", resnet50=True)
    assert (h100[3].met, h100[4].met) == (True, None)
    other = judge_targets(ROWS, None, "NVIDIA H200", resnet50=False)
    assert (other[3].met, other[4].met) == (None, None)


def test_a_p99_of_few_calls_is_open() -> None:
    rows = [replace(one, n=99) if one.batch == 1 else one for one in ROWS]
    target = judge_targets(rows, None, "NVIDIA H200", resnet50=True)[3]
    assert (target.measured, target.met, target.why) == (0.34, None, "99 calls were timed, too few for a p99")


def test_a_limit_that_is_met_exactly_is_met() -> None:
    def met(p99: float) -> bool | None:
        rows = [replace(one, p99_ms=p99) if one.batch == 1 else one for one in ROWS]
        return judge_targets(rows, None, "NVIDIA H200", resnet50=True)[3].met

    assert [met(p99) for p99 in (0.3499, 0.35, 0.3501)] == [True, True, False]


def test_a_row_with_an_error_was_not_measured() -> None:
    rows = [replace(one, p50_ms=None, error="no graph") if one.batch == 1 else one for one in ROWS]
    assert judge_targets(rows, None, "NVIDIA H200", resnet50=True)[3].why == "not measured"


def test_parity_is_the_share_of_engines() -> None:
    def last(*verdicts: str) -> tuple[float | None, bool | None, str]:
        target = judge_targets((), parity(*verdicts), None, resnet50=False)[-1]
        return target.measured, target.met, target.why

    assert last("pass", "fail", "pass", "pass") == (0.75, False, "")
    assert last("pass", "inconclusive") == (1.0, None, "the images are too few to tell")
    assert last("fail", "inconclusive") == (0.5, False, "")
    assert last("not run") == (None, None, "not measured")


def test_targets_as_text() -> None:
    text = target_table(judge_targets(ROWS, parity("pass"), "NVIDIA L4", resnet50=True))
    assert "  int8 over fp16: images a second, the engines alone, largest batch: 2.333, target 1.5: met" in text
    assert ": 61,000, target 60,000: " in text
    assert text.splitlines()[0].endswith("target 0.95: not measured")
