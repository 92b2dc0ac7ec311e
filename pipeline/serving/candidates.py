"""Which files may serve here: their verdicts, what runs them, and their default order.

A verdict counts only for the bytes that were verified. Hashes reveal accidents: a file that was altered, swapped or
damaged since. They are no proof against malice, because whoever can rewrite the artifacts can rewrite the hashes too.
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
from pipeline.artifacts.manifest import matches_manifest, read_stage
from pipeline.artifacts.parity_report import NOT_VERIFIED, ParityReport, read_parity, run_name, thresholds_by_precision
from pipeline.artifacts.paths import CARD, KERAS, ONNX, PARITY, TENSORRT8, Artifacts
from pipeline.recipe.schema import VerifyThresholds
from pipeline.runners.onnxruntime import is_installed as onnxruntime_is_installed

BACKENDS: Final = ("tensorrt", "onnxruntime-cuda", "onnxruntime")  # in their default order
ON_GPU: Final = ("tensorrt", "onnxruntime-cuda")
# On TensorRT INT8 is expected to be fastest. ONNX Runtime computes Q/DQ pairs as they stand: on a GPU FP16 is expected
# to be fastest, and on a CPU, which computes FP16 in FP32, it is FP32.
PREFERENCE: Final[Mapping[str, tuple[str, ...]]] = {
    "tensorrt": ("int8", "fp16", "fp32"),
    "onnxruntime-cuda": ("fp16", "fp32", "int8"),
    "onnxruntime": PRECISIONS,
}


def misfit(profile: BatchProfile | None, batch_size: int) -> tuple[int, float]:
    """Rate how badly batches of a size fit, smaller is better: runs per batch, then distance from the optimal size.

    An engine splits a batch that is larger than its maximum, and pads one that is smaller than its minimum.

    Args:
        profile: batch sizes of an engine; None: any batch runs as it is.
        batch_size: in images.
    """
    if profile is None:
        return 1, 0.0
    piece = max(min(batch_size, profile.max), profile.min)
    distance = abs(math.log(piece / profile.opt)) + math.log(piece / min(piece, batch_size))
    return math.ceil(batch_size / profile.max), distance


def default_rank(
    backend: str, precision: str, profile: BatchProfile | None, batch_size: int
) -> tuple[int, int, int, float]:
    """Return a file's default rank, smallest first: backend, runs per batch, precision, distance from the optimal size.

    Args:
        backend: one of `BACKENDS`.
        precision: "fp32", "fp16" or "int8".
        profile: batch sizes of an engine; None: any batch runs as it is.
        batch_size: in images.
    """
    runs, distance = misfit(profile, batch_size)
    return BACKENDS.index(backend), runs, PREFERENCE[backend].index(precision), distance


def why_nothing_runs(artifacts: Artifacts, driver: DriverStatus) -> str:
    """Return why none of a recipe's files can be run on this machine; "" where one may be, or where there is none.

    Args:
        artifacts: files of the recipe.
        driver: the driver of this machine.
    """
    files, plans = _onnx_files(artifacts), engines(artifacts)
    if files and onnxruntime_is_installed():
        return ""
    reasons = [why_not_opened(artifacts.path(plan), driver) for plan in plans]
    if "" in reasons:
        return ""
    if driver and plans and find_tensorrt("tensorrt") is None:  # with it, engines could be built here
        reasons.insert(0, _missing("tensorrt"))
    return listed(dict.fromkeys([*reasons, *(["no ONNX Runtime"] if files else [])]), separator="; ")


def why_not_opened(plan: Path, driver: DriverStatus) -> str:
    """Return why nothing on this machine opens an engine; "" where something may.

    Args:
        plan: the engine.
        driver: the driver of this machine.
    """
    if not driver:
        return driver.reason
    try:
        sidecar = read_sidecar(plan)
    except ProjectError:
        return ""  # opening it raises the error
    flavour, capability = sidecar.flavour, driver.devices[0].compute_capability
    if flavour not in FLAVOURS or find_tensorrt(flavour) is not None:
        return ""
    is_unsupported = supports(flavour, sidecar.tensorrt_version, capability) is False
    return no_support(flavour, capability) if is_unsupported else _missing(flavour)


def files_to_run(artifacts: Artifacts) -> str:
    """Count the files of a recipe that can be run: "the 3 engines and 3 ONNX files below …"."""
    numbers = {"engine": len(engines(artifacts)), "ONNX file": len(_onnx_files(artifacts))}
    return f"the {' and '.join(count(number, noun) for noun, number in numbers.items() if number)} below {artifacts}"


def _onnx_files(artifacts: Artifacts) -> list[str]:
    return [name for name in (*ONNX.values(), *TENSORRT8.values()) if artifacts.has(name)]


def _missing(flavour: str) -> str:
    name = "TensorRT" if flavour == "tensorrt" else f"TensorRT of the flavour {flavour}"
    hidden = flavour == "tensorrt" and sys.prefix != sys.base_prefix
    jetpack = "; an environment made with --system-site-packages sees that" if hidden else ""
    return f"no {name} ({why_missing().get(flavour, 'not installed')}{jetpack})"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a file as it is now.

    Attributes:
        verdict: "pass", "inconclusive", "fail", "not run" or "not verified".
        why: the reason where it is "not verified", without a full stop; "" elsewhere.
    """

    verdict: str
    why: str = ""


class Verdicts:
    """The verdicts on a recipe's artifacts.

    Args:
        artifacts: files of the recipe; the verdict, its manifest and the model's files are read.
        thresholds: the recipe's; a verdict by other thresholds does not count. Defaults to None: any thresholds.

    Raises:
        ProjectError: ``parity.json`` is damaged.
    """

    def __init__(self, artifacts: Artifacts, thresholds: VerifyThresholds | None = None) -> None:
        self._artifacts, self._thresholds = artifacts, thresholds
        self.report: ParityReport | None = read_parity(artifacts.path(PARITY)) if artifacts.has(PARITY) else None
        self._doubt = self._find_doubt()

    def _find_doubt(self) -> str:
        """Return why the report does not count; "" if it does."""
        if self.report is None:
            return "there is no verdict"
        if read_stage(self._artifacts, "verify") is None:
            return f"no manifest of the verify stage vouches for {PARITY}"
        if not matches_manifest(self._artifacts, PARITY):
            return f"{PARITY} was altered since the verify stage wrote it"
        for name in (CARD, KERAS):
            if self._artifacts.has(name):
                if self.report.subjects.get(name) != sha256_file(self._artifacts.path(name)):
                    return f"{name} was altered since it was verified"
            elif name == CARD:  # Keras' file may be missing: the hash of the file that serves is compared too
                return f"{name} is missing"
        if self._thresholds is not None and self.report.thresholds != thresholds_by_precision(self._thresholds):
            return "the verdict was given by other thresholds than the recipe's verify.thresholds"
        return ""

    def on(self, name: str, backend: str | None = None) -> Verdict:
        """Return the verdict on a file; on an engine, of its sidecar's bytes too.

        Args:
            name: the file's path below the artifacts.
            backend: what is to run it: "onnxruntime", "onnxruntime-cuda" or "tensorrt". Defaults to None: the worst
                verdict of all backends that ran it.
        """
        if self._doubt or self.report is None:
            return Verdict(NOT_VERIFIED, self._doubt)
        names = [name, sidecar_path(Path(name)).as_posix()] if name.endswith(".plan") else [name]
        digests = {file: sha256_file(self._artifacts.path(file)) for file in names if self._artifacts.has(file)}
        verdict = self.report.verdict_of(name, digests, backend)
        if verdict != NOT_VERIFIED:
            return Verdict(verdict)
        if altered := [file for file, digest in digests.items() if self.report.subjects.get(file, digest) != digest]:
            verb = "were altered since they were" if altered[1:] else "was altered since it was"
            return Verdict(NOT_VERIFIED, f"{' and '.join(altered)} {verb} verified")
        return Verdict(NOT_VERIFIED, f"{run_name(name, backend or '')} was never verified")

    def knows(self, name: str) -> bool:
        """Return whether a file of that name was verified, even if it was altered since."""
        return self.report is not None and name in self.report.subjects
