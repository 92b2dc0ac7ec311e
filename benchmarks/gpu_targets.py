"""Holds what was measured on a GPU against the project's targets. Python 3.10 syntax, standard library alone."""

from __future__ import annotations

from collections.abc import Sequence

from export.sidecar import PRECISIONS
from pipeline.gpu_evidence import ENGINE, Parity, Target, TimedRow
from pipeline.parity_report import FAIL, INCONCLUSIVE, NOT_RUN

FEWEST_FOR_P99 = 100  # below, the 99th percentile lies between the two largest
_ELSEWHERE = "measured on another GPU or model than the target is for"


def judge_targets(
    rows: Sequence[TimedRow], parity: Parity | None, gpu: str | None, resnet50: bool
) -> tuple[Target, ...]:
    """Hold rows and verdicts against the project's targets.

    Args:
        rows: what was timed; none: nothing was measured.
        parity: None: nothing was compared.
        gpu: name of the GPU; the absolute targets are for an H100 or H200.
        resnet50: whether the model is a ResNet-50 at 224x224, which the absolute targets are for.

    Returns:
        tuple[Target, ...]: all of them; ``measured`` is None where it was not, and ``met`` where it is open.
    """
    largest = max((row.batch for row in rows if row.variant == "throughput"), default=0)
    h200 = gpu is not None and "H200" in gpu
    hopper = h200 or (gpu is not None and "H100" in gpu)

    def find(
        precision: str, measures: str, batch: int = largest, name: str = ENGINE, beside: str = ""
    ) -> TimedRow | None:
        wanted = (name, precision, measures, batch, beside, "")
        found = (
            row for row in rows if (row.name, row.precision, row.measures, row.batch, row.beside, row.error) == wanted
        )
        return next(found, None)

    def speed(row: TimedRow | None) -> float | None:
        return row.images_per_second if row is not None else None

    def ratio(over: TimedRow | None, under: TimedRow | None) -> float | None:
        high, low = speed(over), speed(under)
        return round(high / low, 4) if high and low else None

    one = find("int8", "infer", 1)
    few = "" if one is None or one.n >= FEWEST_FOR_P99 else f"{one.n} calls were timed, too few for a p99"
    return (
        *(
            _target(
                f"{precision}: images a second from ordinary host memory, over those of the engine alone, largest "
                "batch",
                0.95,
                ratio(find(precision, "stream"), find(precision, "compute")),
            )
            for precision in PRECISIONS
        ),
        _target(
            "int8: p99 of one image, host to host, by a CUDA graph, in ms, at most, ResNet-50 at 224x224 on an H100 or "
            "H200",
            0.35,
            one.p99_ms if one else None,
            few if hopper and resnet50 else _ELSEWHERE,
            at_most=True,
        ),
        _target(
            "int8: images a second, host to host, ResNet-50 at 224x224 on an H200",
            60_000,
            speed(find("int8", "stream")),
            "" if h200 and resnet50 else _ELSEWHERE,
        ),
        *(
            _target(
                f"int8 over fp16: images a second, {said}, largest batch",
                1.5,
                ratio(find("int8", measures), find("fp16", measures)),
            )
            for measures, said in (("compute", "the engines alone"), ("stream", "host to host"))
        ),
        *(
            _target(
                f"fp16 over PyTorch {mode}: computing alone, in turns, largest batch",
                limit,
                ratio(
                    find("fp16", "compute", beside=mode),
                    find("fp16", "compute", name=f"PyTorch {mode}", beside=mode),
                ),
            )
            for mode, limit in (("graphs", 1.3), ("compile", 1.15))
        ),
        _parity_target(parity),
    )


def _parity_target(parity: Parity | None) -> Target:
    """The share of engines that keep Keras' answers; open while the images are too few for one of them."""
    name = "share of the engines whose answers are Keras', within the recipe's thresholds"
    by_engine: dict[str, set[str]] = {}
    for hop in parity.hops if parity else ():
        by_engine.setdefault(hop.candidate, set()).add(hop.verdict)
    ran = [verdicts for verdicts in by_engine.values() if NOT_RUN not in verdicts]
    if not ran:
        return _target(name, 1.0, None)
    failed = sum(FAIL in verdicts for verdicts in ran)
    unclear = "" if failed or not any(INCONCLUSIVE in one for one in ran) else "the images are too few to tell"
    return _target(name, 1.0, round(1 - failed / len(ran), 4), unclear)


def _target(name: str, limit: float, measured: float | None, open_for: str = "", at_most: bool = False) -> Target:
    if measured is None:
        return Target(name, limit, None, None, "not measured")
    if open_for:
        return Target(name, limit, measured, None, open_for)
    return Target(name, limit, measured, measured <= limit if at_most else measured >= limit)


def target_table(targets: Sequence[Target]) -> str:
    """The targets as lines of text."""
    told = ((one, "" if one.measured is None else f"{rounded(one.measured)}, ") for one in targets)
    return "\n".join(f"  {one.target}: {measured}target {rounded(one.limit)}: {said(one)}" for one, measured in told)


def rounded(value: float) -> str:
    """A number as people read it."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def said(target: Target) -> str:
    """Whether a target is met, in a word; or why that is open."""
    return {True: "met", False: "missed", None: target.why}[target.met]
