"""What a visit to a GPU showed, held against the project's targets, as a page of Markdown tables.

Holds what was measured on a GPU against the project's targets. Python 3.10 syntax, standard library alone.

What a visit to a GPU showed, as a page of Markdown tables. Python 3.10 syntax, standard library alone.
"""

from collections.abc import Iterable, Mapping, Sequence

from export.tensorrt.sidecar import PRECISIONS
from export.words import count, listed
from pipeline.artifacts.gpu_evidence import (
    CHECKS,
    ENGINE,
    NAMES,
    PEERS,
    STATES,
    WITHOUT_GRAPHS,
    EngineEvidence,
    GpuEvidence,
    Parity,
    Target,
    TimedRow,
    clocks,
    counted,
    library,
    not_made,
    short_commit,
)
from pipeline.artifacts.parity_report import FAIL, INCONCLUSIVE, NOT_RUN, Hop

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


WHAT: Mapping[str, str] = {
    "compute": "computing alone, no copies",
    "infer": "host to host",
    "stream": "host to host, streamed",
    "stream pinned": "host to host, streamed from page-locked memory",
}

_LEGEND = (
    "Host to host: from uint8 pixels in host memory to logits and probabilities there. p50: half of the calls "
    "took less; p90: nine of ten; p99: 99 of a hundred."
)


def as_markdown(evidence: GpuEvidence) -> str:
    """The whole record as Markdown, most wanted first."""
    idle = not_made(evidence)
    parts = [
        f"# {evidence.model.name} on {evidence.gpu.name}, {library(evidence)}",
        STATES[evidence.state],
        _facts(evidence),
        _section("Speed", _speed(evidence.timings)),
        _section("Answers against Keras'", _parity(evidence)),
        _section("Engines", _engines(evidence.engines)),
        _section("Targets", _targets(evidence)),
        _section("Checks", _checks(evidence)),
        _section("Failed", _bullets(evidence.failures)),
        _section("Not made", _bullets(f"{why}: {listed(names, separator='; ')}" for why, names in idle.items())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(evidence: GpuEvidence) -> str:
    gpu, model, machine, cpu = evidence.gpu, evidence.model, evidence.machine, evidence.machine.cpu
    height, width = model.size
    other = "" if model.as_verified else ", which are not the file that the verify stage wrote"
    rows = [
        ("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}"),
        ("driver", f"{gpu.driver_version or 'unknown'}, CUDA {gpu.cuda_version or 'unknown'}"),
        (
            "clocks and power, read after the steps",
            clocks(evidence) or "not read: nvidia-ml-py or nvidia-smi would tell them",
        ),
        ("processor", f"{cpu.model or 'unknown'}, {cpu.usable_cores or '?'} cores, Python {machine.python or '?'}"),
        ("model", f"{model.name}, {height}×{width}, {count(model.classes, 'class', 'classes')}"),
        ("images", f"{count(model.test_images, 'test image')} with Keras' answers{other}"),
        *((("altered", f"not as the bundle recorded: {', '.join(model.altered)}"),) if model.altered else ()),
        ("date", evidence.date.replace("T", " ").replace("Z", " UTC")),
        ("commit", short_commit(evidence)),
    ]
    return table(("what", "here"), rows)


def _speed(rows: Sequence[TimedRow]) -> str:
    """Rows with times; those without are among the failures."""
    shown = [
        (
            _what(row),
            row.precision.upper(),
            str(row.batch),
            _measured(row),
            {True: "yes", False: "no", None: "–"}[row.graphs],
            _number(row.p50_ms),
            _number(row.p90_ms),
            f"{_number(row.p99_ms)}{'*' if row.p99_is_near_max else ''}",
            f"{row.images_per_second:,.0f}" if row.images_per_second else "–",
        )
        for row in rows
        if not row.error
    ]
    head = ("what", "type", "batch", "measured", "CUDA graph", "p50, ms", "p90, ms", "p99, ms", "images/s")
    few = any(row.p99_is_near_max and not row.error for row in rows)
    note = "\n\n\\* fewer than 100 calls were timed: about the slowest of them." if few else ""
    peers = "".join(f"\n\n{words}" for name, words in PEERS.items() if any(row[0] == name for row in shown))
    return f"{_LEGEND}\n\n{table(head, shown, right=(2, 5, 6, 7, 8))}{note}{peers}" if shown else ""


def _what(row: TimedRow) -> str:
    """What ran; whether by a CUDA graph is in a column of its own."""
    if row.name not in (ENGINE, WITHOUT_GRAPHS):
        return row.name
    return f"{ENGINE} (in turns with PyTorch {row.beside})" if row.beside else ENGINE


def _measured(row: TimedRow) -> str:
    """What the times are of; a stream's are of all the batches that one call holds."""
    return (
        f"{WHAT[row.measures]}, {count(row.batches, 'batch', 'batches')} a call"
        if row.batches > 1
        else WHAT[row.measures]
    )


def _parity(evidence: GpuEvidence) -> str:
    if evidence.parity is None:
        return ""
    rows = [(*_hop(hop), hop.why) for hop in evidence.parity.hops]
    head = ("engine", "verdict", "agreement", "SQNR, dB", "largest relative error", "why")
    own = evidence.model.own_thresholds
    by = "" if own else " Judged by the default thresholds, as the folder has no verdict."
    return f"Over all: {evidence.parity.verdict}.{by}\n\n" + table(head, rows, right=(2, 3, 4))


def _hop(hop: Hop) -> tuple[str, ...]:
    if not hop.compared:
        return hop.candidate, hop.verdict, "–", "–", "–"
    assert hop.top1_agreement is not None
    noise = "equal" if hop.equal else _number(hop.sqnr_db)
    error = "–" if hop.relative_error is None else f"{hop.relative_error:.2g}"
    return hop.candidate, hop.verdict, f"{hop.top1_agreement:.2%}", noise, error


def _engines(engines: Mapping[str, EngineEvidence]) -> str:
    rows = [
        (
            one.precision.upper(),
            one.variant,
            str(one.profile.max) if one.profile.min == one.profile.max else f"{one.profile.min} to {one.profile.max}",
            "–" if one.seconds is None else f"{one.seconds:.1f}",
            f"{one.plan_bytes / 2**20:.1f}",
            _by_type(one),
            "; ".join((*one.warnings, *_refusal(one))),
        )
        for one in engines.values()
    ]
    head = ("type", "variant", "batch", "build, s", "plan, MiB", "convolutions", "warnings")
    return f"{NAMES}\n\n{table(head, rows, right=(3, 4))}" if rows else ""


def _by_type(engine: EngineEvidence) -> str:
    found = engine.convolutions
    listed = ", ".join(f"{number} {kind.upper()}" for kind, number in (found or engine.asked_convolutions).items())
    return listed if found or not listed else f"{listed} asked for"


def _refusal(engine: EngineEvidence) -> tuple[str, ...]:
    return (f"not loaded here: {engine.refused}", f"the library: {engine.library}") if engine.refused else ()


def _targets(evidence: GpuEvidence) -> str:
    rows = [
        (one.target, rounded(one.limit), "–" if one.measured is None else rounded(one.measured), said(one))
        for one in evidence.targets
    ]
    return table(("target", "limit", "measured", "result"), rows, right=(1, 2))


def _checks(evidence: GpuEvidence) -> str:
    if not evidence.checks:
        return ""
    ended = counted((one.result for one in evidence.checks), CHECKS)
    wrong = [one for one in evidence.checks if one.result in ("fail", "error")]
    rows = [(one.engine, one.check.replace("_", " "), one.result, one.detail) for one in wrong]
    return f"{ended}." + ("\n\n" + table(("engine", "check", "result", "what was seen"), rows) if rows else "")


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content}" if content else ""


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_line(one)}" for one in lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table; the columns ``right`` are numbers."""
    rule = ["--:" if index in right else "---" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in (head, rule, *rows))


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    """The text in one line; what a page would take for a tag is not one."""
    return " ".join(text.split()).replace("<", "&lt;")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
