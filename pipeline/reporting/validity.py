"""Whether a verdict still holds: the bytes that were judged, compared with the files as they are now."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from export.tensorrt.sidecar import sidecar_path
from pipeline.artifacts.engines import engines
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.inputs import recipe_changes
from pipeline.artifacts.manifest import read_stage
from pipeline.artifacts.parity_report import NOT_VERIFIED, ParityReport
from pipeline.artifacts.paths import BENCHMARK, DIAGNOSIS, PARITY, PREDICTIONS, REFERENCE, Artifacts
from pipeline.recipe.schema import Recipe

SHOWN_STAGES = ("train", "export", "quantize", "build", "verify", "benchmark", "infer")  # whose results a page shows
SHOWN = (
    "train/history.json",
    "quantize/calibration.json",
    "quantize/placement.json",
    "quantize/sensitivity.csv",
    REFERENCE,
    DIAGNOSIS,
    BENCHMARK,
    PREDICTIONS,
)


@dataclass(frozen=True)
class Validity:
    """Whether a verdict still holds.

    Attributes:
        verdict: as it was given.
        broken: why it does not hold any more, as sentences; empty: it holds.
        remarks: other inconsistencies, as sentences.
    """

    verdict: str
    broken: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The verdict that the page shows: "not verified" where it does not hold."""
        return NOT_VERIFIED if self.broken else self.verdict


def check_validity(artifacts: Artifacts, parity: ParityReport) -> Validity:
    """Compare the judged files, and the records that the page shows, with the artifacts as they are now."""
    digests = {name: digest_now(artifacts, name) for name in parity.subjects}
    broken = [
        _record_note(artifacts, PARITY),
        *(
            f"{name} was altered since it was judged."
            if digests[name]
            else f"{name} is missing; it was judged by the verify stage."
            for name, judged in parity.subjects.items()
            if digests[name] != judged
        ),
        *(
            f"{name} was judged, but the verdict has no hash of it."
            for name in dict.fromkeys(hop.candidate for hop in parity.hops)
            if name not in parity.subjects
        ),
    ]
    remarks = [
        *(f"{name} was never verified." for name in engines(artifacts) if name not in parity.subjects),
        *(_record_note(artifacts, name) for name in SHOWN if artifacts.has(name)),
        *(
            f"The {stage} stage used another {name} than the one here now."
            for stage in ("export", "quantize", "build")
            if (manifest := read_stage(artifacts, stage))
            for name in other_inputs(artifacts, manifest.inputs, parity)
        ),
    ]
    return Validity(parity.verdict, tuple(filter(None, broken)), tuple(filter(None, remarks)))


def engine_verdicts(artifacts: Artifacts, parity: ParityReport) -> dict[str, str]:
    """Return the verdict on each engine with its sidecar, as they are now, by file below the artifacts."""
    files = {name: (name, sidecar_path(Path(name)).as_posix()) for name in engines(artifacts)}
    return {
        name: parity.verdict_of(name, {file: digest for file in pair if (digest := digest_now(artifacts, file))})
        for name, pair in files.items()
    }


def other_inputs(artifacts: Artifacts, inputs: Mapping[str, str], parity: ParityReport) -> list[str]:
    """Return the files that a stage read and verify judged, and that have other bytes now."""
    return [
        name for name, digest in inputs.items() if name in parity.subjects and digest_now(artifacts, name) != digest
    ]


def digest_now(artifacts: Artifacts, name: str) -> str | None:
    """Return the sha256 of a file of the artifacts; None if there is no such file.

    Args:
        artifacts: of a recipe.
        name: from a record; a path outside the artifacts, or that the stage does not declare, is no file.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return None
    return sha256_file(artifacts.path(name)) if artifacts.declares(name) and artifacts.has(name) else None


def outdated_results(artifacts: Artifacts, recipe: Recipe) -> list[str]:
    """Return which results do not belong to this recipe, or not to the present results of earlier stages.

    Only the records are read and nothing is hashed: images and Keras need not be on this machine.
    """
    # `run` does not benchmark, and its numbers belong to the machine.
    records = {stage: read_stage(artifacts, stage) for stage in SHOWN_STAGES if stage != "benchmark"}
    written = {
        f"{stage}/{file}": entry.sha256
        for stage, record in records.items()
        if record
        for file, entry in record.outputs.items()
    }
    reasons = []
    for stage, record in records.items():
        if record is None:
            reasons.append(f"{stage} has no result")
            continue
        reasons += [f"{stage} was run with other values: {change}" for change in recipe_changes(record, recipe)]
        reasons += [
            f"{stage} read another {name}"
            for name, digest in record.inputs.items()
            if written.get(name) not in (None, digest)
        ]
        files = (f"{stage}/{file}" for file in record.outputs)
        reasons += [f"{file} is missing" for file in files if artifacts.declares(file) and not artifacts.has(file)]
    return reasons


def _record_note(artifacts: Artifacts, name: str) -> str:
    """Why a file is not the one that its stage recorded; "" if it is."""
    stage, _, file = name.partition("/")
    manifest = read_stage(artifacts, stage)
    recorded = manifest.outputs.get(file) if manifest else None
    if recorded is None:
        return f"{name} is not in the record of the {stage} stage, so nothing confirms it."
    return (
        ""
        if recorded.sha256 == digest_now(artifacts, name)
        else f"{name} was altered since the {stage} stage wrote it."
    )
