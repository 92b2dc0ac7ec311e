"""What may be served: the verdicts of the verify stage, held against the bytes that are there now.

Hashes show accidents: a file that was altered, swapped or damaged since. Who can rewrite the artifacts can rewrite the
hashes beside them as well, so they are no proof against malice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.sidecar import sidecar_path
from pipeline.files import sha256_file
from pipeline.layout import CARD, KERAS, PARITY
from pipeline.manifest import as_recorded, read_manifest
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
        root: ``artifacts/<recipe>``.
        thresholds: what is asked now; a verdict by others does not count. Defaults to None: whatever was asked.

    Raises:
        ProjectError: ``parity.json`` is damaged.
    """

    def __init__(self, root: Path, thresholds: VerifyThresholds | None = None) -> None:
        self._root, self._thresholds = root, thresholds
        path = root / PARITY
        self.report: ParityReport | None = read_parity(path) if path.is_file() else None
        self._doubt = self._find_doubt()

    def _find_doubt(self) -> str:
        """Why nothing of the report counts; "" if it does."""
        if self.report is None:
            return "there is no verdict"
        path = self._root / PARITY
        if read_manifest(path.parent) is None:
            return f"no manifest of the verify stage vouches for {PARITY}"
        if not as_recorded(path):
            return f"{PARITY} was altered since the verify stage wrote it"
        for name, needed in (
            (CARD, True),
            (KERAS, False),
        ):  # what answers is compared by itself, Keras need not be here
            file = self._root / name
            if file.is_file() and self.report.subjects.get(name) != sha256_file(file):
                return f"{name} was altered since it was verified"
            if needed and not file.is_file():
                return f"{name} is missing"
        if self._thresholds is not None and self.report.thresholds != by_precision(self._thresholds):
            return "the verdict was given by other thresholds than the recipe's verify.thresholds"
        return ""

    def on(self, path: Path, backend: str | None = None) -> Verdict:
        """The verdict on a file below the artifacts, an engine's together with its sidecar's bytes.

        Args:
            path: the file.
            backend: what is to run it: "onnxruntime", "onnxruntime-cuda" or "tensorrt". Defaults to None: the worst of
                all that ran it.
        """
        if self._doubt or self.report is None:
            return Verdict(NOT_VERIFIED, self._doubt)
        name = self._name(path)
        digests = {name: sha256_file(path)}
        if path.suffix == ".plan" and sidecar_path(path).is_file():
            digests[self._name(sidecar_path(path))] = sha256_file(sidecar_path(path))
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

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()
