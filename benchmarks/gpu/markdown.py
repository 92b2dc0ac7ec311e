"""Compare the results of a visit to a GPU with the project's targets, and write them as a page of Markdown tables.

The module needs Python 3.10 and numpy alone.
"""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.gpu.forms import FORM_NAMES, contest_rows, form_engine_rows, verdict
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
    Target,
    TimedRow,
    count_results,
    library,
    short_commit,
    telemetry_ranges,
    unfinished_steps,
)
from pipeline.artifacts.parity_report import CONSISTENCY, FAIL, INCONCLUSIVE, NOT_RUN, Hop, Parity

FEWEST_FOR_P99 = 100  # below, the 99th percentile lies between the two largest
_ELSEWHERE = "measured on another GPU or model than the target is for"


def judge_targets(
    rows: Sequence[TimedRow], parity: Parity | None, gpu: str | None, resnet50: bool
) -> tuple[Target, ...]:
    """Compare rows and verdicts with the project's targets.

    Args:
        rows: what was timed; may be empty.
        parity: None where nothing was compared.
        gpu: name of the GPU; the absolute targets are for an H100 or H200.
        resnet50: whether the model is a ResNet-50 at 224x224, which the absolute targets are for.

    Returns:
        tuple[Target, ...]: all targets; ``measured`` is None where nothing was measured, ``met`` where it is open.
    """
    largest = max((row.batch for row in rows if row.variant == "throughput"), default=0)
    h200 = gpu is not None and "H200" in gpu
    hopper = h200 or (gpu is not None and "H100" in gpu)
    by_key: dict[tuple[object, ...], TimedRow] = {
        (row.name, row.precision, row.measures, row.batch, row.beside): row for row in reversed(rows) if not row.error
    }

    def find(
        precision: str, measures: str, batch: int = largest, name: str = ENGINE, beside: str = ""
    ) -> TimedRow | None:
        return by_key.get((name, precision, measures, batch, beside))

    def speed(row: TimedRow | None) -> float | None:
        return row.images_per_second if row is not None else None

    def ratio(over: TimedRow | None, under: TimedRow | None) -> float | None:
        high, low = speed(over), speed(under)
        return round(high / low, 4) if high and low else None

    one_image = find("int8", "infer", 1)
    few = f"{one_image.n} calls were timed, too few for a p99" if one_image and one_image.n < FEWEST_FOR_P99 else ""
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
            one_image.p99_ms if one_image else None,
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
                f"int8 over fp16: images a second, {words}, largest batch",
                1.5,
                ratio(find("int8", measures), find("fp16", measures)),
            )
            for measures, words in (("compute", "the engines alone"), ("stream", "host to host"))
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
    """Return the share of engines within the thresholds; open while some have too few images for a verdict."""
    by_engine: dict[str, set[str]] = {}
    for hop in [hop for hop in parity.hops if not hop.lacks_reference] if parity else ():
        by_engine.setdefault(hop.candidate, set()).add(hop.verdict)
    verdicts = [verdicts for verdicts in by_engine.values() if NOT_RUN not in verdicts]
    failed = sum(FAIL in each for each in verdicts)
    return _target(
        "share of the engines whose answers are Keras', within the recipe's thresholds",
        1.0,
        round(1 - failed / len(verdicts), 4) if verdicts else None,
        "the images are too few to tell" if not failed and any(INCONCLUSIVE in each for each in verdicts) else "",
    )


def _target(name: str, limit: float, measured: float | None, open_for: str = "", at_most: bool = False) -> Target:
    if measured is None:
        return Target(name, limit, None, None, "not measured")
    if open_for:
        return Target(name, limit, measured, None, open_for)
    return Target(name, limit, measured, measured <= limit if at_most else measured >= limit)


def target_table(targets: Sequence[Target]) -> str:
    """Return the targets as lines of text."""
    rows = ((target, "" if target.measured is None else f"{format_number(target.measured)}, ") for target in targets)
    return "\n".join(
        f"  {row.target}: {measured}target {format_number(row.limit)}: {target_result(row)}" for row, measured in rows
    )


def format_number(value: float) -> str:
    """Format a number for display."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def target_result(target: Target) -> str:
    """Return "met" or "missed", or why the target is open."""
    return {True: "met", False: "missed", None: target.why}[target.met]


MEASURES_TEXT: Mapping[str, str] = {
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
    """Return the evidence as Markdown, the most important sections first."""
    parts = [
        f"# {evidence.model.name} on {evidence.gpu.name}, {library(evidence)}",
        STATES[evidence.state],
        _facts(evidence),
        _section("Speed", _speed(evidence.timings)),
        _section("Answers against Keras'", _parity(evidence)),
        _section("Engines", _engines(evidence.engines)),
        _section("INT8 against other forms of its file", _forms(evidence)),
        _section("Targets", _targets(evidence.targets)),
        _section("Checks", _checks(evidence)),
        _section("Failed", _bullets(evidence.failures)),
        _section(
            "Not made",
            _bullets(f"{why}: {listed(names, separator='; ')}" for why, names in unfinished_steps(evidence).items()),
        ),
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
            telemetry_ranges(evidence) or "not read, as neither nvidia-ml-py nor nvidia-smi is installed",
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
    """Return a table of the rows with times; those without are among the failures."""
    shown = [
        (
            _name(row),
            row.precision.upper(),
            str(row.batch),
            # The times of a stream are those of all batches of a call.
            MEASURES_TEXT[row.measures]
            + (f", {count(row.batches, 'batch', 'batches')} a call" if row.batches > 1 else ""),
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
    note = "\n\n\\* from fewer than 100 calls, so nearly the slowest call." if few else ""
    peers = "".join(f"\n\n{words}" for name, words in PEERS.items() if any(row[0] == name for row in shown))
    return f"{_LEGEND}\n\n{table(head, shown, right=(2, 5, 6, 7, 8))}{note}{peers}" if shown else ""


def _name(row: TimedRow) -> str:
    """Return the name of a row, without its use of a CUDA graph, which has its own column."""
    if row.name not in (ENGINE, WITHOUT_GRAPHS):
        return row.name
    return f"{ENGINE} (in turns with PyTorch {row.beside})" if row.beside else ENGINE


def _parity(evidence: GpuEvidence) -> str:
    if evidence.parity is None:
        return ""
    rows = [(*_hop(hop), hop.why) for hop in evidence.parity.hops]
    head = ("engine", "verdict", "agreement", "SQNR, dB", "largest relative error", "why")
    default = (
        "" if evidence.model.own_thresholds else " Judged by the default thresholds, as the folder has no verdict."
    )
    return f"Over all: {evidence.parity.verdict}.{default}\n\n" + table(head, rows, right=(2, 3, 4))


def _hop(hop: Hop) -> tuple[str, ...]:
    if not hop.compared:
        name = f"{hop.candidate}, {hop.reference}" if hop.kind == CONSISTENCY else hop.candidate
        return name, hop.verdict, "–", "–", "–"
    assert hop.top1_agreement is not None
    noise = "equal" if hop.equal else _number(hop.sqnr_db)
    error = "–" if hop.relative_error is None else f"{hop.relative_error:.2g}"
    return hop.candidate, hop.verdict, f"{hop.top1_agreement:.2%}", noise, error


def _engines(engines: Mapping[str, EngineEvidence]) -> str:
    rows = [
        (
            engine.precision.upper(),
            engine.variant,
            " to ".join(map(str, dict.fromkeys((engine.profile.min, engine.profile.max)))),
            "–" if engine.seconds is None else f"{engine.seconds:.1f}",
            f"{engine.plan_bytes / 2**20:.1f}",
            _by_type(engine),
            "; ".join(
                (
                    *engine.warnings,
                    *(
                        [f"not loaded here: {engine.refused}", f"the library: {engine.library}"]
                        if engine.refused
                        else []
                    ),
                )
            ),
        )
        for engine in engines.values()
    ]
    head = ("type", "variant", "batch", "build, s", "plan, MiB", "convolutions", "warnings")
    return f"{NAMES}\n\n{table(head, rows, right=(3, 4))}" if rows else ""


def _by_type(engine: EngineEvidence) -> str:
    by_type = engine.convolutions or engine.asked_convolutions
    numbers = ", ".join(f"{number} {kind.upper()}" for kind, number in by_type.items())
    return numbers if engine.convolutions or not numbers else f"{numbers} asked for"


def _forms(evidence: GpuEvidence) -> str:
    if not evidence.forms:
        return ""
    times = contest_rows(evidence.contests)
    head = ("form", "batch", "measured", "as shipped, ms", "this form, ms", "shipped / form", "95 %")
    parts = [
        _bullets(filter(None, (verdict(form, evidence.contests) for form in FORM_NAMES))),
        table(head, times, right=(1, 3, 4, 5, 6)) if times else "",
        table(
            ("INT8 engine", "layers", "reformats", "convolutions with their activation"),
            form_engine_rows(evidence),
            right=(1, 2, 3),
        ),
    ]
    return "\n\n".join(filter(None, parts))


def _targets(targets: Sequence[Target]) -> str:
    rows = [
        (
            row.target,
            format_number(row.limit),
            "–" if row.measured is None else format_number(row.measured),
            target_result(row),
        )
        for row in targets
    ]
    return table(("target", "limit", "measured", "result"), rows, right=(1, 2))


def _checks(evidence: GpuEvidence) -> str:
    if not evidence.checks:
        return ""
    counts = count_results((check.result for check in evidence.checks), CHECKS)
    rows = [
        (check.engine, check.check.replace("_", " "), check.result, check.detail)
        for check in evidence.checks
        if check.result in ("fail", "error")
    ]
    return f"{counts}." + ("\n\n" + table(("engine", "check", "result", "details"), rows) if rows else "")


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content}" if content else ""


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_line(line)}" for line in lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return a Markdown table; the columns ``right`` are right-aligned."""
    rule = ("--:" if index in right else "---" for index in range(len(head)))
    escaped = ([_line(cell).replace("|", "\\|") for cell in row] for row in (head, rule, *rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _line(text: str) -> str:
    """Return the text in one line, with the start of HTML tags escaped."""
    return " ".join(text.split()).replace("<", "&lt;")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
