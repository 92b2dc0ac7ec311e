"""What a report's verdict is worth now: the bytes that were judged, held against those that are there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from export.tensorrt.sidecar import sidecar_path
from pipeline.artifacts.engines import engines
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.inputs import recipe_changes
from pipeline.artifacts.manifest import read_stage
from pipeline.artifacts.parity_report import NOT_VERIFIED, ParityReport
from pipeline.artifacts.paths import BENCHMARK, PARITY, PREDICTIONS, REFERENCE, Artifacts
from pipeline.recipe.schema import Recipe

SHOWN_STAGES = ("train", "export", "quantize", "build", "verify", "benchmark", "infer")  # whose results a page shows
SHOWN = (
    "train/history.json",
    "quantize/calibration.json",
    "quantize/placement.json",
    "quantize/sensitivity.csv",
    REFERENCE,
    BENCHMARK,
    PREDICTIONS,
)


@dataclass(frozen=True)
class Standing:
    """Whether a verdict still holds.

    Attributes:
        verdict: as it was given.
        broken: what it no longer holds for, and why, in sentences; empty: it holds.
        remarks: what else does not fit together, in sentences.
    """

    verdict: str
    broken: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The verdict that the page shows."""
        return NOT_VERIFIED if self.broken else self.verdict


def standing(artifacts: Artifacts, parity: ParityReport) -> Standing:
    """Compare what was judged, and what the page shows, with the files of a recipe's artifacts as they are."""
    broken = [note] if (note := _record_note(artifacts, PARITY)) else []
    for name, digest in parity.subjects.items():
        now = digest_now(artifacts, name)
        if now is None:
            broken.append(f"{name} is missing; it was judged by the verify stage.")
        elif now != digest:
            broken.append(f"{name} was altered since it was judged.")
    judged = dict.fromkeys(hop.candidate for hop in parity.hops)
    broken += [
        f"{name} was judged, but the verdict is bound to no bytes of it."
        for name in judged
        if name not in parity.subjects
    ]
    remarks = [f"{name} was never verified." for name in engines(artifacts) if name not in parity.subjects]
    remarks += [note for name in SHOWN if artifacts.has(name) and (note := _record_note(artifacts, name))]
    for stage in ("export", "quantize", "build"):
        manifest = read_stage(artifacts, stage)
        others = other_inputs(artifacts, manifest.inputs, parity) if manifest else []
        remarks += [f"The {stage} stage worked on another {name} than is here now." for name in others]
    return Standing(parity.verdict, tuple(broken), tuple(remarks))


def engine_verdicts(artifacts: Artifacts, parity: ParityReport) -> dict[str, str]:
    """The verdict on each engine that is there, and its sidecar, as they are now; by file below the artifacts."""
    verdicts = {}
    for name in engines(artifacts):
        digests = {one: digest_now(artifacts, one) for one in (name, sidecar_path(Path(name)).as_posix())}
        verdicts[name] = parity.verdict_of(name, {one: digest for one, digest in digests.items() if digest})
    return verdicts


def other_inputs(artifacts: Artifacts, inputs: Mapping[str, str], parity: ParityReport) -> list[str]:
    """Of the files that a stage read and verify judged, those that are others now."""
    return [
        name for name, digest in inputs.items() if name in parity.subjects and digest_now(artifacts, name) != digest
    ]


def digest_now(artifacts: Artifacts, name: str) -> str | None:
    """sha256 of a file of the artifacts; None if there is none of that name.

    Args:
        artifacts: of a recipe.
        name: as a record has it: one that a page reads no file of, or that leads elsewhere, is of no file.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return None
    return sha256_file(artifacts.path(name)) if artifacts.declares(name) and artifacts.has(name) else None


def behind(artifacts: Artifacts, recipe: Recipe) -> list[str]:
    """Which results are not of this recipe, or not of what other stages wrote since, in sentences.

    The records alone are asked, and nothing is hashed: images and Keras need not be on this machine.
    """
    # What a benchmark measured belongs to the machine, and `run` does not measure.
    records = {stage: read_stage(artifacts, stage) for stage in SHOWN_STAGES if stage != "benchmark"}
    found = []
    for stage, record in records.items():
        if record is None:
            found.append(f"{stage} has no result")
            continue
        found += [f"{stage} was run with other values: {change}" for change in recipe_changes(record, recipe)]
        for name, digest in record.inputs.items():
            maker, _, file = name.partition("/")
            source = records.get(maker)
            written = source.outputs.get(file) if source else None
            if written is not None and written.sha256 != digest:
                found.append(f"{stage} read another {name}")
        names = (f"{stage}/{name}" for name in record.outputs)
        found += [f"{name} is missing" for name in names if artifacts.declares(name) and not artifacts.has(name)]
    return found


def _record_note(artifacts: Artifacts, name: str) -> str:
    """Why a file is not what its stage recorded; "" if it is."""
    stage, _, file = name.partition("/")
    manifest = read_stage(artifacts, stage)
    recorded = manifest.outputs.get(file) if manifest else None
    if recorded is None:
        return f"{name} is in no record of the {stage} stage, so nothing vouches for it."
    return (
        ""
        if recorded.sha256 == digest_now(artifacts, name)
        else f"{name} was altered since the {stage} stage wrote it."
    )
