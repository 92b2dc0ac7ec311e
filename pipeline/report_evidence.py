"""The report's section on evidence from a GPU: what ``python -m benchmarks.gpu_evidence`` brought back from a visit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.evidence_words import NAMES, PEERS, STATES, clocks, library, not_made, short_commit, shortened
from pipeline.gpu_evidence import (
    ENGINE,
    FOLDER,
    LARGEST,
    EngineEvidence,
    GpuEvidence,
    Target,
    TimedRow,
    read_gpu_evidence,
)
from pipeline.html import Footnotes, Section, badge, details, notes, number, share, table, text
from pipeline.layout import KERAS, ONNX, engine_sources
from pipeline.parity_report import FAIL, INCONCLUSIVE, NOT_RUN, NOT_VERIFIED, PASS, Hop
from pipeline.report_speed import REFERENCE
from pipeline.report_standing import digest_now
from pipeline.words import count, listed, sentence

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
ORDER = (FAIL, NOT_RUN, INCONCLUSIVE, PASS)  # a file's verdict is the first of those of its comparisons


def evidence_sections(root: Path) -> list[Section]:
    """The section, where a recipe's artifacts hold evidence; what visited last comes first.

    Args:
        root: a recipe's artifacts.
    """
    shown: list[tuple[str, GpuEvidence]] = []
    damaged = []
    for path in sorted(path for path in (root / FOLDER).glob("*.json") if path.is_file()):
        name = f"{FOLDER}/{path.name}"
        try:
            shown.append((name, read_gpu_evidence(path)))
        except PipelineError as error:
            damaged.append(f"{name} is left out. {error}")
    if not shown and not damaged:
        return []
    digests = {name: digest for name in (KERAS, *_sources(root)) if (digest := digest_now(root, name))}
    newest = sorted(shown, key=lambda one: one[1].date, reverse=True)[:SHOWN]
    parts = [_visit(name, one, digests, root, index) for index, (name, one) in enumerate(newest, 1)]
    words = (
        f"{count(len(shown), 'visit')} to a GPU, apart from what ran here: each measured and judged its own engines. "
        f"{NAMES}"
        if shown
        else ""
    )
    if len(shown) > SHOWN:
        words += f" These are the last {SHOWN}; the others are in {FOLDER}/."
    damaged, more = damaged[:SHOWN], len(damaged[SHOWN:])
    if more:
        damaged.append(f"{count(more, 'more file is', 'more files are')} left out as damaged.")
    return [Section(TITLE, words, notes(damaged) + "".join(parts))]


def _sources(root: Path) -> list[str]:
    return [name for precision in ONNX for name in engine_sources(root, precision)]


def _visit(name: str, evidence: GpuEvidence, digests: Mapping[str, str], root: Path, index: int) -> str:
    gpu = evidence.gpu
    facts = (
        f"driver {gpu.driver_version or 'unknown'}",
        f"CUDA {gpu.cuda_version or 'unknown'}",
        f"compute capability {gpu.compute_capability}",
        *([f"after the steps {read}"] if (read := clocks(evidence)) else []),
        evidence.date.replace("T", " ").replace("Z", " UTC"),
        f"commit {short_commit(evidence)}",
        name,
    )
    others = {key: one for key, one in evidence.engines.items() if not _is_here(one, digests, root)}
    return (
        f"<h3>{text(gpu.name, LONGEST)}, {text(library(evidence), LONGEST)}</h3>"
        f"<p>{'; '.join(text(fact, LONGEST) for fact in facts)}.</p>"
        + notes([line for line in (STATES[evidence.state], *_belongs(evidence, others, digests)) if line])
        + _engines(evidence, others, f"evidence-{index}")
        + _targets(evidence.targets)
        + _checks(evidence)
        + _failures(evidence)
        + _not_made(evidence)
    )


def _is_here(engine: EngineEvidence, digests: Mapping[str, str], root: Path) -> bool:
    """Whether an engine was built from a file that is here now."""
    return engine.onnx_sha256 in {digests[name] for name in engine_sources(root, engine.precision)}


def _belongs(
    evidence: GpuEvidence, others: Mapping[str, EngineEvidence], digests: Mapping[str, str]
) -> tuple[str, ...]:
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
    return tuple(said)


def _engines(evidence: GpuEvidence, others: Mapping[str, EngineEvidence], table_name: str) -> str:
    """Each engine, and beside them PyTorch, in one compact table."""
    remarks = Footnotes(table_name)
    largest = max((row.batch for row in evidence.timings), default=0)
    rows = [_engine(name, evidence, largest, name in others, remarks) for name in evidence.engines]
    rows += [_peer(row, remarks) for row in evidence.timings if row.name.startswith("PyTorch") and _tells(row, largest)]
    if not rows:
        return ""
    names = (
        *("verdict", "engine", "*agreement"),
        *("*p50, ms", "*p99, ms", "*images/s", "*engine alone, images/s"),
    )
    about = {3: ONE_IMAGE, 5: f"Host to host, in batches of {largest:,}.", 6: ALONE}
    shown = {column: words for column, words in about.items() if any(row[column] for row in rows)}
    head = tuple(name + remarks.mark(shown.get(column, "")) for column, name in enumerate(names))
    return table(head, rows) + remarks.html


def _engine(name: str, evidence: GpuEvidence, largest: int, other: bool, remarks: Footnotes) -> tuple[str, ...]:
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
    marks = remarks.mark(
        sentence(why[:LONGEST]),
        f"Not loaded here: {engine.refused} The library: {engine.library}"[:LONGEST] if engine.refused else "",
        *(sentence(warning[:LONGEST]) for warning in engine.warnings[:REMARKS]),
        *[sentence(f"not timed: {row.error}"[:LONGEST]) for row in own if row.error][:REMARKS],
        f"Images/s: {WAYS[ends.measures]}." if ends else "",
        f"p99: of {count(one.n, 'call')}, so it is about the slowest of them." if one and few else "",
    )
    return (
        badge(NOT_VERIFIED, f"{verdict}, of another file") if other else badge(verdict, verdict),
        text(name, LONGEST) + marks,
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


def _peer(row: TimedRow, remarks: Footnotes) -> tuple[str, ...]:
    speed = number(row.images_per_second, ",.0f")
    return (
        badge(REFERENCE, REFERENCE),
        text(f"{row.name} {row.precision}", LONGEST) + remarks.mark(PEERS.get(row.name, "")),
        "",
        "",
        "",
        "",
        speed,
    )


def _targets(targets: Sequence[Target]) -> str:
    if not targets:
        return ""
    names = {True: (PASS, "met"), False: (FAIL, "missed"), None: (NOT_RUN, "open")}
    counts = Counter(target.met for target in targets)
    said = ", ".join(f"{counts[met]} {words}" for met, (_, words) in names.items() if counts[met])
    rows = [
        (
            badge(*names[target.met]),
            text(target.target + (f" ({target.why})" if target.why else ""), LONGEST),
            f"{target.limit:,g}",
            number(target.measured, ",.0f" if 1000 <= abs(target.measured or 0) < LARGEST else ".4g"),
        )
        for target in targets
    ]
    return details(f"Targets: {said}", table(("result", "target", "*limit", "*measured"), rows))


def _checks(evidence: GpuEvidence) -> str:
    counts: Counter[str] = Counter(check.result for check in evidence.checks)
    named = {"pass": "passed", "fail": "failed", "error": "could not be made", "skipped": "skipped"}
    said = ", ".join(f"{counts[result]} {words}" for result, words in named.items() if counts[result])
    return f"<p>Checks: {said}.</p>" if said else ""


def _failures(evidence: GpuEvidence) -> str:
    failures = evidence.failures
    items = "".join(f"<li>{text(failure, LONGEST)}</li>" for failure in failures)
    return f"<p>{badge(FAIL, 'failed')}</p><ul>{items}</ul>" if items else ""


def _not_made(evidence: GpuEvidence) -> str:
    """The steps that were left out, or that the visit did not come to, by the reason."""
    named = not_made(evidence)
    items = "".join(
        f"<li>{text(shortened([name[:LONGEST] for name in names]))}: {text(why, LONGEST)}</li>"
        for why, names in named.items()
    )
    number_of = sum(map(len, named.values()))
    verb = "was" if number_of == 1 else "were"
    return details(f"{count(number_of, 'step')} {verb} not made", f"<ul>{items}</ul>") if items else ""
