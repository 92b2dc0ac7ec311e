"""The verdict as a file, ``verify/parity.json``: every hop with its distances, and the bytes that they hold for.

Standard library only, Python 3.10 syntax.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from export.metrics.confidence import McNemar
from export.metrics.distances import FloatNoise
from export.records import read_record, to_json
from export.tensorrt.sidecar import Precision
from pipeline.artifacts.files import write_json
from pipeline.recipe.schema import Thresholds, VerifyThresholds

PASS: Final = "pass"
INCONCLUSIVE: Final = "inconclusive"
FAIL: Final = "fail"
NOT_RUN: Final = "not run"
NOT_VERIFIED: Final = "not verified"
FROM_KERAS: Final = "from_keras"
STEP: Final = "step"
TOP_K: Final = "top_k"
CUDA: Final = "onnxruntime-cuda"  # the backend that runs the same files as "onnxruntime", on a GPU
NO_LOGITS: Final = "did not give usable logits"  # of a reference, in why a comparison with it failed
SCHEMA = 3
Kind = Literal["from_keras", "step", "top_k"]
Overall = Literal["pass", "inconclusive", "fail"]
Verdict = Literal["pass", "inconclusive", "fail", "not run"]
REMEDY = "Run the recipe's verify stage again."


@dataclass(frozen=True)
class Hop:
    """One comparison of a candidate with a reference on the test images.

    Attributes:
        kind: "from_keras" (against Keras), "step" (against the step before), "top_k" (the best classes that a graph
            picks, against its own probabilities).
        reference: file that gave the expected answers, or what they are.
        candidate: file that was judged, relative to the artifacts folder.
        backend: "onnxruntime", "onnxruntime-cuda" or "tensorrt".
        precision: "fp32", "fp16" or "int8".
        images: test images.
        verdict: on this hop.
        why: what was missed, or why it did not run.
        certainty: what a pass shows.
        images_to_decide: about how many images would decide, where it is inconclusive.
        note: what this backend does and does not prove.
        finite: whether every logit is; None where nothing was compared, as all that follow.
        max_abs: largest difference of a logit; None where not all are finite.
        relative_error: that over the largest logit of the reference.
        relative_limit: the relative error allowed; None where none was asked for.
        noise: what the limit follows from, where the recipe leaves it to the model; None else, and where it was not
            measured.
        cosine: mean over the images.
        sqnr_db: signal to noise of the logits in dB; None where both are equal, or not all are finite.
        top1_agreement: share of images with the same best class.
        agreement_interval: 95 %, Wilson.
        accuracy_reference: share of the labels that the reference meets.
        accuracy_candidate: share of the labels that the candidate meets.
        accuracy_drop: share lost.
        accuracy_drop_interval: 95 %, Tango.
        mcnemar: right answers lost and gained.
    """

    kind: Kind
    reference: str
    candidate: str
    backend: str
    precision: Precision
    images: int
    verdict: Verdict
    why: str = ""
    certainty: str = ""
    images_to_decide: int | None = None
    note: str = ""
    finite: bool | None = None
    max_abs: float | None = None
    relative_error: float | None = None
    relative_limit: float | None = None
    noise: FloatNoise | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    top1_agreement: float | None = None
    agreement_interval: tuple[float, float] | None = None
    accuracy_reference: float | None = None
    accuracy_candidate: float | None = None
    accuracy_drop: float | None = None
    accuracy_drop_interval: tuple[float, float] | None = None
    mcnemar: McNemar | None = None

    @property
    def run_name(self) -> str:
        """The candidate in words: the file, and what ran it where that has to be said."""
        return run_name(self.candidate, self.backend)

    @property
    def compared(self) -> bool:
        """Whether there are distances, which may be infinite."""
        return self.top1_agreement is not None

    @property
    def lacks_reference(self) -> bool:
        """Whether what the candidate is held against was not run here, so that the hop says nothing of the candidate.

        A candidate that was not run itself has a ``from_keras`` hop that says so.
        """
        return self.verdict == NOT_RUN and self.kind != FROM_KERAS

    @property
    def equal(self) -> bool:
        """Whether candidate and reference gave the very same logits."""
        return self.compared and self.sqnr_db is None and self.max_abs == 0


@dataclass(frozen=True)
class ParityReport:
    """The verdict of the verify stage.

    Attributes:
        verdict: over all hops.
        subjects: file to sha256, of all that the verdict holds for: the judged files and what they were judged with.
        thresholds: what was asked, by precision.
        hops: every comparison.
        warnings: what a reader must know besides the verdict.
        schema: of this file.
    """

    verdict: Overall
    subjects: Mapping[str, str]
    thresholds: Mapping[str, Thresholds]
    hops: tuple[Hop, ...]
    warnings: tuple[str, ...] = field(default=())
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if (expected := overall_verdict(self.hops)) != self.verdict:
            raise ValueError(f"the verdict {self.verdict!r} over hops whose verdict is {expected!r}")

    def verdict_of(self, name: str, digests: Mapping[str, str], backend: str | None = None) -> str:
        """The verdict on one file.

        One file that two backends run has two verdicts: what passed on a CPU may fail in the GPU's own arithmetic.

        Args:
            name: the file, relative to the artifacts folder.
            digests: sha256 of the file, and of what belongs to it, by name.
            backend: what is to run it. Defaults to None: the worst of all that ran it.

        Returns:
            "pass", "inconclusive", "fail", "not run", or "not verified" if it is unknown, was not run by this
            backend, or was changed since.
        """
        if name not in digests or any(self.subjects.get(key) != digest for key, digest in digests.items()):
            return NOT_VERIFIED
        verdicts = {
            hop.verdict
            for hop in self.hops
            if hop.candidate == name and backend in (None, hop.backend) and not hop.lacks_reference
        }
        return next((v for v in (FAIL, NOT_RUN, INCONCLUSIVE, PASS) if v in verdicts), NOT_VERIFIED)


def run_name(name: str, backend: str) -> str:
    """A file and what ran it, in words; no two runs have the same. The CPU's and TensorRT's need only the file."""
    return name if backend in ("", "onnxruntime", "tensorrt") else f"{name} on {'CUDA' if backend == CUDA else backend}"


def overall_verdict(hops: Sequence[Hop]) -> Overall:
    """The verdict over all: "fail" when a hop failed or none ran, else "inconclusive" when a hop is, else "pass"."""
    verdicts = {hop.verdict for hop in hops}
    if FAIL in verdicts or not verdicts & {PASS, INCONCLUSIVE}:
        return "fail"
    return "inconclusive" if INCONCLUSIVE in verdicts else "pass"


def allowed(hops: Sequence[Hop]) -> str:
    """What a relative error may be where the recipe leaves it to the model, and why; "" where it says a number."""
    limits = (
        f"relative error of at most {hop.relative_limit:.1e} allowed in {hop.precision.upper()}: {hop.noise}"
        for hop in hops
        if hop.noise is not None and hop.relative_limit is not None
    )
    return next(limits, "")


def not_run(hops: Sequence[Hop]) -> dict[str, list[str]]:
    """The files of comparisons that did not run, each once, by the reason; one that ran itself with its reference."""
    found: dict[str, list[str]] = {}
    idle = {hop.run_name for hop in hops if hop.verdict == NOT_RUN and hop.kind == FROM_KERAS}
    for hop in hops:
        if hop.verdict == NOT_RUN:
            name = hop.run_name if hop.run_name in idle else f"{hop.run_name} against {hop.reference}"
            if name not in found.setdefault(hop.why, []):
                found[hop.why].append(name)
    return found


def by_precision(thresholds: VerifyThresholds) -> dict[str, Thresholds]:
    """The recipe's thresholds as a verdict records them."""
    return {"fp32": thresholds.fp32, "fp16": thresholds.fp16, "int8": thresholds.int8}


def read_parity(path: Path) -> ParityReport:
    """Read a verdict.

    Raises:
        ProjectError: missing, damaged, of another schema, or at odds with itself; with the file and the key.
    """
    return read_record(ParityReport, path, remedy=REMEDY, what="verdict")


def write_parity(path: Path, report: ParityReport) -> None:
    """Write a verdict."""
    write_json(path, to_json(report))
