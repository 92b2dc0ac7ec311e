"""What a report's verdict is worth now: the bytes that were judged, held against those that are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from export.sidecar import sidecar_path
from pipeline.files import sha256_file
from pipeline.layout import BENCHMARK, PARITY, PREDICTIONS, REFERENCE, engines
from pipeline.manifest import read_manifest
from pipeline.parity_report import NOT_VERIFIED, ParityReport

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


def standing(root: Path, parity: ParityReport) -> Standing:
    """Compare what was judged, and what the page shows, with the files of a recipe's artifacts as they are."""
    broken = [note] if (note := _record_note(root, PARITY)) else []
    for name, digest in parity.subjects.items():
        now = digest_now(root, name)
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
    unknown = [plan.relative_to(root).as_posix() for plan in engines(root)]
    remarks = [f"{name} was never verified." for name in unknown if name not in parity.subjects]
    remarks += [note for name in SHOWN if (root / name).is_file() and (note := _record_note(root, name))]
    for stage in ("export", "quantize", "build"):
        manifest = read_manifest(root / stage)
        others = other_inputs(root, manifest.inputs, parity) if manifest else []
        remarks += [f"The {stage} stage worked on another {name} than is here now." for name in others]
    return Standing(parity.verdict, tuple(broken), tuple(remarks))


def engine_verdicts(root: Path, parity: ParityReport) -> dict[str, str]:
    """The verdict on each engine that is there, and its sidecar, as they are now; by file below the artifacts."""
    return {plan.relative_to(root).as_posix(): _engine_verdict(root, plan, parity) for plan in engines(root)}


def _engine_verdict(root: Path, plan: Path, parity: ParityReport) -> str:
    names = [path.relative_to(root).as_posix() for path in (plan, sidecar_path(plan)) if path.is_file()]
    return parity.verdict_of(names[0], {name: sha256_file(root / name) for name in names})


def other_inputs(root: Path, inputs: Mapping[str, str], parity: ParityReport) -> list[str]:
    """Of the files that a stage read and verify judged, those that are others now."""
    return [name for name, digest in inputs.items() if name in parity.subjects and digest_now(root, name) != digest]


def digest_now(root: Path, name: str) -> str | None:
    """sha256 of a file of the artifacts; None if there is none of that name."""
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    return sha256_file(root / name) if inside and (root / name).is_file() else None


def _record_note(root: Path, name: str) -> str:
    """Why a file is not what its stage recorded; "" if it is."""
    stage, _, file = name.partition("/")
    manifest = read_manifest(root / stage)
    recorded = manifest.outputs.get(file) if manifest else None
    if recorded is None:
        return f"{name} is in no record of the {stage} stage, so nothing vouches for it."
    return "" if recorded.sha256 == digest_now(root, name) else f"{name} was altered since the {stage} stage wrote it."
