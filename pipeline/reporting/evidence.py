"""The report's section on evidence from a GPU: what ``python -m benchmarks.gpu_evidence`` brought back from a visit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.errors import ProjectError
from export.words import count, listed, sentence
from pipeline.artifacts.engines import engine_source
from pipeline.artifacts.gpu_evidence import (
    CHECKS,
    ENGINE,
    FOLDER,
    LARGEST,
    NAMES,
    PEERS,
    STATES,
    EngineEvidence,
    GpuEvidence,
    Target,
    TimedRow,
    clocks,
    counted,
    library,
    not_made,
    read_gpu_evidence,
    short_commit,
)
from pipeline.artifacts.parity_report import FAIL, INCONCLUSIVE, NOT_RUN, NOT_VERIFIED, PASS, Hop
from pipeline.artifacts.paths import KERAS, ONNX, TENSORRT8, Artifacts
from pipeline.reporting.html import Cell, Section, Table, badge, cut, number, section, share
from pipeline.reporting.speed import REFERENCE
from pipeline.reporting.validity import digest_now

TITLE = "Evidence from a GPU"
LONGEST = 400  # characters of a library's words; the file has them all
SHOWN = 20  # visits, the last ones
REMARKS = 10  # of an engine
ONE_IMAGE = "Of one image, from uint8 pixels in host memory to logits in host memory, launched by a CUDA graph."
WAYS: Mapping[str, str] = {
    "stream": "many batches a call, overlapped",
    "infer": "one batch a call",
}
ALONE = "No copy over the bus: pixels and results lie on the GPU."
MET: Mapping[bool | None, Cell] = {True: badge(PASS, "met"), False: badge(FAIL, "missed"), None: badge(NOT_RUN, "open")}
ORDER = (FAIL, NOT_RUN, INCONCLUSIVE, PASS)  # a file's verdict is the first of those of its comparisons


@dataclass(frozen=True)
class Visit:
    """One visit to a GPU, as the page tells it; plain text.

    Attributes:
        evidence: what it brought back.
        library: TensorRT's name and version.
        facts: of the machine and the visit.
        notes: what to know before reading the numbers, as sentences.
        engines: each engine, and beside them PyTorch.
        targets: what was to be reached.
        met: how many were.
        checks: how they ended; "" where there were none.
        not_made: names of the steps that were left out, or that the visit did not come to, by the reason.
    """

    evidence: GpuEvidence
    library: str
    facts: Sequence[str]
    notes: Sequence[str]
    engines: Table
    targets: Table
    met: str
    checks: str
    not_made: Mapping[str, Sequence[str]]


def evidence_sections(artifacts: Artifacts) -> list[Section]:
    """The section, where a recipe's artifacts hold evidence; what visited last comes first.

    Args:
        artifacts: of a recipe.
    """
    read: list[tuple[str, GpuEvidence]] = []
    damaged = []
    for name in artifacts.matching(f"{FOLDER}/*.json"):
        try:
            read.append((name, read_gpu_evidence(artifacts.path(name))))
        except ProjectError as error:
            damaged.append(f"{name} is left out. {error}")
    if not read and not damaged:
        return []
    if more := len(damaged[SHOWN:]):
        damaged[SHOWN:] = [f"{count(more, 'more file is', 'more files are')} left out as damaged."]
    newest = sorted(read, key=lambda one: one[1].date, reverse=True)[:SHOWN]
    sources = (KERAS, *ONNX.values(), *TENSORRT8.values())
    digests = {name: digest for name in sources if (digest := digest_now(artifacts, name))}
    visits = [_visit(name, one, digests, f"evidence-{index}") for index, (name, one) in enumerate(newest, 1)]
    values = {"number": len(read), "names": NAMES, "folder": FOLDER, "damaged": damaged, "visits": visits}
    return [section(TITLE, "evidence.html.j2", **values)]


def _visit(name: str, evidence: GpuEvidence, digests: Mapping[str, str], table: str) -> Visit:
    others = [key for key, one in evidence.engines.items() if not _is_here(one, digests)]
    gpu = evidence.gpu
    return Visit(
        evidence=evidence,
        library=library(evidence),
        facts=(
            f"driver {gpu.driver_version or 'unknown'}",
            f"CUDA {gpu.cuda_version or 'unknown'}",
            f"compute capability {gpu.compute_capability}",
            *([f"after the steps {read}"] if (read := clocks(evidence)) else []),
            evidence.date.replace("T", " ").replace("Z", " UTC"),
            f"commit {short_commit(evidence)}",
            name,
        ),
        notes=[line for line in (STATES[evidence.state], *_belongs(evidence, others, digests)) if line],
        engines=_engines(evidence, others, table),
        targets=Table(("result", "target", "*limit", "*measured"), [_target(one) for one in evidence.targets]),
        met=counted([target.met for target in evidence.targets], {met: cell.text for met, cell in MET.items()}),
        checks=counted([check.result for check in evidence.checks], CHECKS),
        not_made=not_made(evidence),
    )


def _is_here(engine: EngineEvidence, digests: Mapping[str, str]) -> bool:
    """Whether an engine was built from a file that is here now."""
    return engine.onnx_sha256 in {digests.get(engine_source(engine.precision, typed)) for typed in (True, False)}


def _belongs(evidence: GpuEvidence, others: Sequence[str], digests: Mapping[str, str]) -> list[str]:
    """Whether it is of the model on the page, in sentences."""
    said = []
    if KERAS in digests and evidence.model.keras_sha256 != digests[KERAS]:
        said.append("The answers were held against another Keras model than is here.")
    if others:
        every = len(others) == len(evidence.engines)
        which, whose = ("", "The") if every else (f": {listed(name[:LONGEST] for name in others)}", "Their")
        said.append(
            f"Measured with other files than are here now{which}. {whose} numbers say nothing of the model on this "
            "page."
        )
    elif evidence.engines and not said:
        said.append("Its engines were built from the ONNX files that are here.")
    if not evidence.model.as_verified:
        images = count(evidence.model.test_images, "test image")
        said.append(f"Keras' answers on {images} came from another file than the verify stage wrote.")
    if evidence.model.altered:
        said.append(f"Not as the bundle recorded: {listed(name[:LONGEST] for name in evidence.model.altered)}.")
    if evidence.parity and not evidence.model.own_thresholds:
        said.append("Judged by the default thresholds, as the folder had no verdict.")
    return said


def _engines(evidence: GpuEvidence, others: Sequence[str], name: str) -> Table:
    """Each engine, and beside them PyTorch, in one compact table."""
    largest = max((row.batch for row in evidence.timings), default=0)
    rows = [_engine(one, evidence, largest, one in others) for one in evidence.engines]
    rows += [_peer(row) for row in evidence.timings if row.name.startswith("PyTorch") and _tells(row, largest)]
    head = (
        *("verdict", "engine", "*agreement", Cell("*p50, ms", remarks=[ONE_IMAGE]), "*p99, ms"),
        Cell("*images/s", remarks=[f"Host to host, in batches of {largest:,}."]),
        Cell("*engine alone, images/s", remarks=[ALONE]),
    )
    return Table(head, rows, name)


def _engine(name: str, evidence: GpuEvidence, largest: int, other: bool) -> tuple[str | Cell, ...]:
    engine = evidence.engines[name]
    own = [
        row
        for row in evidence.timings
        if (row.name, row.precision, row.variant, row.beside) == (ENGINE, engine.precision, engine.variant, "")
    ]
    one = next((row for row in own if row.batch == 1 and row.measures == "infer"), None)
    many = {row.measures: row for row in own if row.batch == largest > 1}
    ends = next((many[way] for way in WAYS if way in many and not many[way].error), None)
    alone = many.get("compute")
    hops = [hop for hop in evidence.parity.hops if hop.candidate == name] if evidence.parity else []
    verdict, why = _verdict(hops)
    few = one is not None and one.p99_is_near_max
    remarks = (
        sentence(why[:LONGEST]),
        f"Not loaded here: {engine.refused} The library: {engine.library}"[:LONGEST] if engine.refused else "",
        *(sentence(warning[:LONGEST]) for warning in engine.warnings[:REMARKS]),
        *[sentence(f"not timed: {row.error}"[:LONGEST]) for row in own if row.error][:REMARKS],
        f"Images/s: {WAYS[ends.measures]}." if ends else "",
        f"p99: of {count(one.n, 'call')}, so it is about the slowest of them." if one and few else "",
    )
    return (
        badge(NOT_VERIFIED, f"{verdict}, of another file") if other else badge(verdict),
        Cell(cut(name, LONGEST), remarks=remarks),
        share(next((hop.top1_agreement for hop in hops if hop.compared), None)),
        number(one.p50_ms if one else None, ".3f"),
        number(one.p99_ms if one else None, ".3f"),
        number(ends.images_per_second if ends else None, ",.0f"),
        number(alone.images_per_second if alone else None, ",.0f"),
    )


def _verdict(hops: Sequence[Hop]) -> tuple[str, str]:
    """The worst verdict of an engine's comparisons and why; "not run" where nothing was compared."""
    worst = next((hop for verdict in ORDER for hop in hops if hop.verdict == verdict), None)
    return (worst.verdict, worst.why) if worst else (NOT_RUN, "")


def _tells(row: TimedRow, largest: int) -> bool:
    return row.batch == largest and row.measures == "compute" and not row.error


def _peer(row: TimedRow) -> tuple[str | Cell, ...]:
    name = cut(f"{row.name} {row.precision}", LONGEST)
    speed = number(row.images_per_second, ",.0f")
    return (badge(REFERENCE), Cell(name, remarks=[PEERS.get(row.name, "")]), *[""] * 4, speed)


def _target(target: Target) -> tuple[str | Cell, ...]:
    return (
        MET[target.met],
        cut(target.target + (f" ({target.why})" if target.why else ""), LONGEST),
        f"{target.limit:,g}",
        number(target.measured, ",.0f" if 1000 <= abs(target.measured or 0) < LARGEST else ".4g"),
    )
