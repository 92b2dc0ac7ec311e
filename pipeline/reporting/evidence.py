"""The report's section on GPU evidence, the records that ``python -m benchmarks.gpu_evidence`` makes."""

from collections.abc import Mapping, Sequence

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
    count_results,
    library,
    read_gpu_evidence,
    short_commit,
    telemetry_ranges,
    unfinished_steps,
)
from pipeline.artifacts.parity_report import FAIL, INCONCLUSIVE, NOT_RUN, NOT_VERIFIED, PASS
from pipeline.artifacts.paths import KERAS, ONNX, TENSORRT8, Artifacts
from pipeline.reporting.html import Cell, Section, Table, badge, cut, number, section, share
from pipeline.reporting.speed import REFERENCE
from pipeline.reporting.validity import digest_now

TITLE = "Evidence from a GPU"
LONGEST = 400  # characters of a library's message; the file has all of them
SHOWN = 20  # visits: the latest
REMARKS = 10  # warnings, and errors, of an engine
ONE_IMAGE = "For one image, from uint8 pixels in host memory to logits in host memory, launched by a CUDA graph."
WAYS: Mapping[str, str] = {
    "stream": "many batches a call, overlapped",
    "infer": "one batch a call",
}
ENGINE_ALONE = "No copy over the bus: pixels and results are in GPU memory."
TARGET_BADGES: Mapping[bool | None, Cell] = {
    True: badge(PASS, "met"),
    False: badge(FAIL, "missed"),
    None: badge(NOT_RUN, "open"),
}
ORDER = (FAIL, NOT_RUN, INCONCLUSIVE, PASS)  # an engine's verdict is the first of these that a comparison has


def evidence_sections(artifacts: Artifacts) -> list[Section]:
    """Make the section, the latest visit first; none where the artifacts of a recipe have no evidence."""
    records: list[tuple[str, GpuEvidence]] = []
    damaged = []
    for name in artifacts.matching(f"{FOLDER}/*.json"):
        try:
            records.append((name, read_gpu_evidence(artifacts.path(name))))
        except ProjectError as error:
            damaged.append(f"{name} is left out. {error}")
    if not records and not damaged:
        return []
    if more := len(damaged[SHOWN:]):
        damaged[SHOWN:] = [f"{count(more, 'more file is', 'more files are')} left out as damaged."]
    latest = sorted(records, key=lambda record: record[1].date, reverse=True)[:SHOWN]
    sources = (KERAS, *ONNX.values(), *TENSORRT8.values())
    digests = {name: digest for name in sources if (digest := digest_now(artifacts, name))}
    visits = [_visit(name, evidence, digests, f"evidence-{at}") for at, (name, evidence) in enumerate(latest, 1)]
    values = {"number": len(records), "names": NAMES, "folder": FOLDER, "damaged": damaged, "visits": visits}
    return [section(TITLE, "evidence.html.j2", (), **values)]


def _visit(name: str, evidence: GpuEvidence, digests: Mapping[str, str], table: str) -> dict[str, object]:
    """The values that the template shows of one visit; all text is plain."""
    others = [key for key, engine in evidence.engines.items() if not _is_current(engine, digests)]
    gpu = evidence.gpu
    return {
        "evidence": evidence,
        "library": library(evidence),
        "facts": (
            f"driver {gpu.driver_version or 'unknown'}",
            f"CUDA {gpu.cuda_version or 'unknown'}",
            f"compute capability {gpu.compute_capability}",
            *([f"after the steps {read}"] if (read := telemetry_ranges(evidence)) else []),
            evidence.date.replace("T", " ").replace("Z", " UTC"),
            f"commit {short_commit(evidence)}",
            name,
        ),
        "notes": [line for line in (STATES[evidence.state], *_relation(evidence, others, digests)) if line],
        "engines": _engines(evidence, others, table),
        "targets": Table(("result", "target", "*limit", "*measured"), [_target(row) for row in evidence.targets]),
        "met": count_results(
            [target.met for target in evidence.targets], {met: cell.text for met, cell in TARGET_BADGES.items()}
        ),
        "checks": count_results([check.result for check in evidence.checks], CHECKS),
        "not_made": unfinished_steps(evidence),
    }


def _is_current(engine: EngineEvidence, digests: Mapping[str, str]) -> bool:
    """Whether an engine was built from a file that is here now."""
    return engine.onnx_sha256 in {digests.get(engine_source(engine.precision, typed)) for typed in (True, False)}


def _relation(evidence: GpuEvidence, others: Sequence[str], digests: Mapping[str, str]) -> list[str]:
    """Whether the evidence is about the model on the page, as sentences; empty ones do not count."""
    model = evidence.model
    same_keras = KERAS not in digests or model.keras_sha256 == digests[KERAS]
    names = "" if len(others) == len(evidence.engines) else f": {listed(name[:LONGEST] for name in others)}"
    other_files = (
        f"Measured with other files than those here now{names}. {'Their' if names else 'The'} numbers do not apply to "
        "the model on this page."
    )
    current = "Its engines were built from the ONNX files here." if evidence.engines and same_keras else ""
    images = count(model.test_images, "test image")
    altered = listed(name[:LONGEST] for name in model.altered)
    default_thresholds = evidence.parity and not model.own_thresholds
    return [
        "" if same_keras else "The engines were compared with another Keras model than the one here.",
        other_files if others else current,
        "" if model.as_verified else f"Keras' logits on {images} are not those that the verify stage wrote.",
        f"Not as the bundle recorded: {altered}." if altered else "",
        "Judged by the default thresholds, as the folder had no verdict." if default_thresholds else "",
    ]


def _engines(evidence: GpuEvidence, others: Sequence[str], name: str) -> Table:
    """Each engine, and PyTorch on the same GPU, in one compact table."""
    largest = max((row.batch for row in evidence.timings), default=0)
    rows = [_engine(engine, evidence, largest, engine in others) for engine in evidence.engines]
    rows += [
        _peer(row)
        for row in evidence.timings
        if row.name.startswith("PyTorch") and row.batch == largest and row.measures == "compute" and not row.error
    ]
    head = (
        *("verdict", "engine", "*agreement", Cell("*p50, ms", remarks=[ONE_IMAGE]), "*p99, ms"),
        Cell("*images/s", remarks=[f"Host to host, in batches of {largest:,}."]),
        Cell("*engine alone, images/s", remarks=[ENGINE_ALONE]),
    )
    return Table(head, rows, name)


def _engine(name: str, evidence: GpuEvidence, largest: int, other: bool) -> tuple[str | Cell, ...]:
    engine = evidence.engines[name]
    own = [
        row
        for row in evidence.timings
        if (row.name, row.precision, row.variant, row.beside) == (ENGINE, engine.precision, engine.variant, "")
    ]
    single = next((row for row in own if row.batch == 1 and row.measures == "infer"), None)
    batched = {row.measures: row for row in own if row.batch == largest > 1}
    end_to_end = next((batched[way] for way in WAYS if way in batched and not batched[way].error), None)
    alone = batched.get("compute")
    every = evidence.parity.hops if evidence.parity else ()
    hops = [hop for hop in every if hop.candidate == name and not hop.lacks_reference]
    worst = next((hop for verdict in ORDER for hop in hops if hop.verdict == verdict), None)
    verdict = worst.verdict if worst else NOT_RUN
    remarks = (
        sentence(worst.why[:LONGEST]) if worst else "",
        f"Not loaded here: {engine.refused} The library: {engine.library}"[:LONGEST] if engine.refused else "",
        *(sentence(warning[:LONGEST]) for warning in engine.warnings[:REMARKS]),
        *[sentence(f"not timed: {row.error}"[:LONGEST]) for row in own if row.error][:REMARKS],
        f"Images/s: {WAYS[end_to_end.measures]}." if end_to_end else "",
        f"p99: of {count(single.n, 'call')}, so it is about the slowest of them."
        if single and single.p99_is_near_max
        else "",
    )
    return (
        badge(NOT_VERIFIED, f"{verdict}, of another file") if other else badge(verdict),
        Cell(cut(name, LONGEST), remarks=remarks),
        share(next((hop.top1_agreement for hop in hops if hop.compared), None)),
        number(single.p50_ms if single else None, ".3f"),
        number(single.p99_ms if single else None, ".3f"),
        number(end_to_end.images_per_second if end_to_end else None, ",.0f"),
        number(alone.images_per_second if alone else None, ",.0f"),
    )


def _peer(row: TimedRow) -> tuple[str | Cell, ...]:
    peer = Cell(cut(f"{row.name} {row.precision}", LONGEST), remarks=[PEERS.get(row.name, "")])
    return (badge(REFERENCE), peer, *[""] * 4, number(row.images_per_second, ",.0f"))


def _target(target: Target) -> tuple[str | Cell, ...]:
    return (
        TARGET_BADGES[target.met],
        cut(target.target + (f" ({target.why})" if target.why else ""), LONGEST),
        f"{target.limit:,g}",
        number(target.measured, ",.0f" if 1000 <= abs(target.measured or 0) < LARGEST else ".4g"),
    )
