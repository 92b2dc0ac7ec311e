"""Which files may answer here: their verdicts, what runs them, and their order where nothing was measured.

Which of several files comes first where nothing was measured: by backend, batch sizes and precision.

Standard library only, Python 3.10 syntax.

What runs a recipe's files on this machine: asked where nothing does, so that the true reason is said.

What may be served: the verdicts of the verify stage, held against the bytes that are there now.

Hashes show accidents: a file that was altered, swapped or damaged since. Who can rewrite the artifacts can rewrite the
hashes beside them as well, so they are no proof against malice.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from export.errors import ProjectError
from export.tensorrt.driver import DriverStatus, no_support, supports
from export.tensorrt.library import FLAVOURS, find_tensorrt, why_missing
from export.tensorrt.sidecar import PRECISIONS, BatchProfile, read_sidecar, sidecar_path
from export.words import count, listed
from pipeline.artifacts.engines import engines
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.manifest import as_recorded, read_stage
from pipeline.artifacts.parity_report import NOT_VERIFIED, ParityReport, by_precision, read_parity, run_name
from pipeline.artifacts.paths import CARD, KERAS, ONNX, PARITY, TENSORRT8, Artifacts
from pipeline.recipe.schema import VerifyThresholds
from pipeline.runners.onnxruntime import is_installed as onnxruntime_is_installed

BACKENDS: Final = ("tensorrt", "onnxruntime-cuda", "onnxruntime")  # the first that is here comes first
ON_GPU: Final = ("tensorrt", "onnxruntime-cuda")
# On TensorRT INT8 is expected to be fastest. ONNX Runtime computes Q/DQ pairs as they stand: on a GPU FP16 is expected
# to be fastest, and on a CPU, which computes FP16 in FP32, it is FP32.
PREFERENCE: Final[Mapping[str, tuple[str, ...]]] = {
    "tensorrt": ("int8", "fp16", "fp32"),
    "onnxruntime-cuda": ("fp16", "fp32", "int8"),
    "onnxruntime": PRECISIONS,
}


def misfit(profile: BatchProfile | None, batch_size: int) -> tuple[int, float]:
    """How badly batches of a size fit, the smaller the better: runs a batch, then distance from the best size.

    An engine runs in pieces what is larger than its largest batch, and fills up what is smaller than its smallest.

    Args:
        profile: of an engine; None: any batch runs as it is.
        batch_size: in images.
    """
    if profile is None:
        return 1, 0.0
    piece = max(min(batch_size, profile.max), profile.min)
    distance = abs(math.log(piece / profile.opt)) + math.log(piece / min(piece, batch_size))
    return math.ceil(batch_size / profile.max), distance


def fit(backend: str, precision: str, profile: BatchProfile | None, batch_size: int) -> tuple[int, int, int, float]:
    """Where a file stands, the smallest first: backend, runs a batch, precision, distance from the best size."""
    runs, distance = misfit(profile, batch_size)
    return BACKENDS.index(backend), runs, PREFERENCE[backend].index(precision), distance


def why_nothing_runs(artifacts: Artifacts, driver: DriverStatus) -> str:
    """Why none of a recipe's files can be run on this machine; "" where one may be, or where there is none.

    Args:
        artifacts: of the recipe.
        driver: of this machine.
    """
    files, plans = _onnx_files(artifacts), engines(artifacts)
    if files and onnxruntime_is_installed():
        return ""
    reasons = [why_not_opened(artifacts.path(plan), driver) for plan in plans]
    if "" in reasons:
        return ""
    if driver and plans and find_tensorrt("tensorrt") is None:  # which runs its own engines, and builds them here
        reasons.insert(0, _missing("tensorrt"))
    return listed(dict.fromkeys([*reasons, *(["no ONNX Runtime"] if files else [])]), separator="; ")


def why_not_opened(plan: Path, driver: DriverStatus) -> str:
    """Why nothing here opens an engine; "" where something may.

    Args:
        plan: the engine.
        driver: of this machine.
    """
    if not driver:
        return driver.reason
    try:
        sidecar = read_sidecar(plan)
    except ProjectError:
        return ""  # what is wrong with it is said where it is opened
    flavour, here = sidecar.flavour, driver.devices[0].compute_capability
    if flavour not in FLAVOURS or find_tensorrt(flavour) is not None:
        return ""
    unsupported = supports(flavour, sidecar.tensorrt_version, here) is False
    return no_support(flavour, here) if unsupported else _missing(flavour)


def files_to_run(artifacts: Artifacts) -> str:
    """How many of a recipe's files there are to be run, and where: "the 3 engines and 3 ONNX files below …"."""
    counted = {"engine": len(engines(artifacts)), "ONNX file": len(_onnx_files(artifacts))}
    return f"the {' and '.join(count(number, noun) for noun, number in counted.items() if number)} below {artifacts}"


def _onnx_files(artifacts: Artifacts) -> list[str]:
    return [name for name in (*ONNX.values(), *TENSORRT8.values()) if artifacts.has(name)]


def _missing(flavour: str) -> str:
    what = "TensorRT" if flavour == "tensorrt" else f"TensorRT of the flavour {flavour}"
    hidden = flavour == "tensorrt" and sys.prefix != sys.base_prefix
    jetpack = "; an environment made with --system-site-packages sees that" if hidden else ""
    return f"no {what} ({why_missing().get(flavour, 'not installed')}{jetpack})"


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
