"""What may be served: the verdicts of the verify stage, held against the bytes that are there now.

Hashes show accidents: a file that was altered, swapped or damaged since. Who can rewrite the artifacts can rewrite the
hashes beside them as well, so they are no proof against malice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.sidecar import sidecar_path
from pipeline.artifacts import Artifacts
from pipeline.files import sha256_file
from pipeline.layout import CARD, KERAS, PARITY
from pipeline.manifest import as_recorded, read_stage
from pipeline.parity_report import NOT_VERIFIED, ParityReport, by_precision, read_parity, run_name
from pipeline.recipe import VerifyThresholds


@dataclass(frozen=True)
class Verdict:
    """The verdict on a file as it is now.

    Attributes:
        verdict: "pass", "inconclusive", "fail", "not run" or "not verified".
        why: what is the matter where it is "not verified", as a sentence without a stop; "" elsewhere.
    """

    verdict: str
    why: str = ""


class Verdicts:
    """The verdicts on a recipe's artifacts.

    Args:
        artifacts: of the recipe; the verdict, its manifest and the model's files are read.
        thresholds: what is asked now; a verdict by others does not count. Defaults to None: whatever was asked.

    Raises:
        ProjectError: ``parity.json`` is damaged.
    """

    def __init__(self, artifacts: Artifacts, thresholds: VerifyThresholds | None = None) -> None:
        self._artifacts, self._thresholds = artifacts, thresholds
        self.report: ParityReport | None = read_parity(artifacts.path(PARITY)) if artifacts.has(PARITY) else None
        self._doubt = self._find_doubt()

    def _find_doubt(self) -> str:
        """Why nothing of the report counts; "" if it does."""
        if self.report is None:
            return "there is no verdict"
        if read_stage(self._artifacts, "verify") is None:
            return f"no manifest of the verify stage vouches for {PARITY}"
        if not as_recorded(self._artifacts, PARITY):
            return f"{PARITY} was altered since the verify stage wrote it"
        for name, needed in (
            (CARD, True),
            (KERAS, False),
        ):  # what answers is compared by itself, Keras need not be here
            there = self._artifacts.has(name)
            if there and self.report.subjects.get(name) != sha256_file(self._artifacts.path(name)):
                return f"{name} was altered since it was verified"
            if needed and not there:
                return f"{name} is missing"
        if self._thresholds is not None and self.report.thresholds != by_precision(self._thresholds):
            return "the verdict was given by other thresholds than the recipe's verify.thresholds"
        return ""

    def on(self, name: str, backend: str | None = None) -> Verdict:
        """The verdict on a file below the artifacts, an engine's together with its sidecar's bytes.

        Args:
            name: of the file.
            backend: what is to run it: "onnxruntime", "onnxruntime-cuda" or "tensorrt". Defaults to None: the worst of
                all that ran it.
        """
        if self._doubt or self.report is None:
            return Verdict(NOT_VERIFIED, self._doubt)
        names = [name, sidecar_path(Path(name)).as_posix()] if name.endswith(".plan") else [name]
        digests = {one: sha256_file(self._artifacts.path(one)) for one in names if self._artifacts.has(one)}
        verdict = self.report.verdict_of(name, digests, backend)
        if verdict != NOT_VERIFIED:
            return Verdict(verdict)
        altered = [key for key, digest in digests.items() if self.report.subjects.get(key, digest) != digest]
        if altered:
            verb = "were altered since they were" if altered[1:] else "was altered since it was"
            return Verdict(NOT_VERIFIED, f"{' and '.join(altered)} {verb} verified")
        return Verdict(NOT_VERIFIED, f"{run_name(name, backend or '')} was never verified")

    def knows(self, name: str) -> bool:
        """Whether a file of that name was verified, whatever became of it."""
        return self.report is not None and name in self.report.subjects
