"""The verdict's record, ``verify/parity.json``: every hop with its distances, and the digests of the files judged.

Standard library only, Python 3.10 syntax.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from export.metrics.confidence import McNemar
from export.metrics.distances import FloatNoise
from export.records import read_record
from export.tensorrt.sidecar import Precision
from export.words import percent
from pipeline.recipe.schema import Thresholds, VerifyThresholds

PASS: Final = "pass"
INCONCLUSIVE: Final = "inconclusive"
FAIL: Final = "fail"
NOT_RUN: Final = "not run"
NOT_VERIFIED: Final = "not verified"
FROM_KERAS: Final = "from_keras"
STEP: Final = "step"
TOP_K: Final = "top_k"
CONSISTENCY: Final = "consistency"
CUDA: Final = "onnxruntime-cuda"  # backend that runs the files of "onnxruntime" on a GPU
VALUES_OF: Final = "the values of "  # begins `Hop.reference` where weights and scales were compared, not answers
NO_LOGITS: Final = "did not give usable logits"  # said of a reference in `Hop.why`
SCHEMA = 4
Kind = Literal["from_keras", "step", "top_k", "consistency"]
Overall = Literal["pass", "inconclusive", "fail"]
Verdict = Literal["pass", "inconclusive", "fail", "not run"]
REMEDY = "Run the recipe's verify stage again: python -m pipeline verify -c RECIPE."


@dataclass(frozen=True)
class ImageNoise:
    """SQNR of the logits image by image; where an image's logits are equal, its SQNR counts as `EQUAL_DB`.

    Attributes:
        median_db: Median.
        p5_db: 5th percentile.
        mean_db: Mean.
        std_db: Sample standard deviation; 0 for one image.
        worst: Index and SQNR of the five worst images, worst first; None where an image's logits are not finite.
    """

    median_db: float
    p5_db: float
    mean_db: float
    std_db: float
    worst: tuple[tuple[int, float | None], ...]


EQUAL_DB: Final = 200.0
MOST_CHANGED: Final = 1000


@dataclass(frozen=True)
class Hop:
    """One comparison of a candidate with a reference on the test images.

    Attributes:
        kind: "from_keras" (with Keras), "step" (with the step before), "top_k" (the best classes that a graph
            returns, with its own probabilities), or "consistency" (a file with itself: batches, repetitions, rows; or
            its weights and scales with those of the file it was made from).
        reference: File that gave the expected logits, or a description of them.
        candidate: File that was judged, relative to the artifacts folder.
        backend: "onnxruntime", "onnxruntime-cuda" or "tensorrt".
        precision: "fp32", "fp16" or "int8".
        images: Number of test images.
        verdict: Verdict on this hop.
        why: Which threshold was missed, or why it did not run.
        certainty: What a pass shows.
        images_to_decide: Estimated number of images that would decide an inconclusive hop.
        note: What this backend does and does not prove.
        finite: Whether all logits are finite; None where nothing was compared, like all that follow.
        max_abs: Largest absolute difference of a logit; None where not all are finite.
        relative_error: That difference over the largest absolute logit of the reference.
        relative_limit: Relative error allowed; None without a limit.
        noise: Float noise that the limit follows from, where the recipe says "auto"; None otherwise, and where it was
            not measured.
        cosine: Mean cosine similarity of the logits over the images.
        sqnr_db: Signal to quantization noise ratio of the logits in dB; None where both are equal, or not all are
            finite.
        top1_agreement: Share of the images with the same top class.
        agreement_interval: 95 % confidence interval by Wilson.
        accuracy_reference: Accuracy of the reference, as a share.
        accuracy_candidate: Accuracy of the candidate, as a share.
        accuracy_drop: Difference of the two.
        accuracy_drop_interval: 95 % confidence interval by Tango.
        mcnemar: Numbers of correct predictions lost and gained.
        mean_abs: Mean absolute difference of a logit; None where not all are finite.
        relative_l2: Euclidean norm of the difference over that of the reference; None where not all are finite.
        kl: Mean Kullback-Leibler divergence of the candidate's probabilities from the reference's, in nats.
        top5_agreement: Share of the images whose top class of the reference is among the candidate's best five; None
            with fewer than six classes.
        changed: Indices of the images with another top class, ascending; the first `MOST_CHANGED`.
        image_noise: SQNR image by image; None where nothing was compared.
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
    mean_abs: float | None = None
    relative_l2: float | None = None
    kl: float | None = None
    top5_agreement: float | None = None
    changed: tuple[int, ...] = ()
    image_noise: ImageNoise | None = None

    @property
    def run_name(self) -> str:
        """Name of the candidate's run, see the function `run_name`."""
        return run_name(self.candidate, self.backend)

    @property
    def compared(self) -> bool:
        """Whether there are distances, which may be infinite."""
        return self.top1_agreement is not None

    @property
    def lacks_reference(self) -> bool:
        """Whether the hop has no verdict on the candidate: its reference was not run here, or is at fault itself.

        A candidate that was not run itself has a ``from_keras`` hop that records it.
        """
        return self.verdict == NOT_RUN and self.kind != FROM_KERAS

    @property
    def changed_answers(self) -> int | None:
        """Number of images with another top class; None where nothing was compared."""
        return None if self.top1_agreement is None else round((1 - self.top1_agreement) * self.images)

    @property
    def equal(self) -> bool:
        """Whether candidate and reference gave identical logits."""
        return self.compared and self.sqnr_db is None and self.max_abs == 0


@dataclass(frozen=True)
class Parity:
    """Comparisons with Keras, and the verdict on them.

    Attributes:
        verdict: Verdict over all hops.
        thresholds: Thresholds by precision.
        hops: All comparisons.

    Raises:
        ValueError: The verdict does not follow from the hops.
    """

    verdict: Overall
    thresholds: Mapping[str, Thresholds]
    hops: tuple[Hop, ...]

    def __post_init__(self) -> None:
        if (expected := overall_verdict(self.hops)) != self.verdict:
            raise ValueError(f"the verdict {self.verdict!r} over hops whose verdict is {expected!r}")


@dataclass(frozen=True)
class ParityReport(Parity):
    """The verdict of the verify stage.

    Attributes:
        subjects: sha256 by name of the files that were judged and of those that they were judged with.
        warnings: What a reader must know besides the verdict.
        images_sha256: Digest of pixels and labels of the test images, in order; "" if unknown.
        schema: Version of this file format.
    """

    subjects: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    images_sha256: str = ""
    schema: int = SCHEMA

    def verdict_of(self, name: str, digests: Mapping[str, str], backend: str | None = None) -> str:
        """Return the verdict on one file.

        A file that two backends ran has two verdicts, because what passed on a CPU may fail on a GPU.

        Args:
            name: The file, relative to the artifacts folder.
            digests: sha256 by name of the file and of the files that belong to it.
            backend: Backend to run it. Defaults to None: the worst verdict over all backends.

        Returns:
            "pass", "inconclusive", "fail", "not run", or "not verified" if the file is unknown, was not run by this
            backend, or was altered since.
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
    """Return the unique name of a run: the file, with the backend unless it is ONNX Runtime's CPU or TensorRT."""
    return name if backend in ("", "onnxruntime", "tensorrt") else f"{name} on {'CUDA' if backend == CUDA else backend}"


def overall_verdict(hops: Sequence[Hop]) -> Overall:
    """Return "fail" if a hop failed or no file was compared with Keras, else "inconclusive" if a hop is, else "pass".

    How files are decoded, or that a file agrees with itself, is no verdict on the model's answers.
    """
    verdicts = {hop.verdict for hop in hops}
    if FAIL in verdicts or not any(hop.kind == FROM_KERAS and hop.verdict in (PASS, INCONCLUSIVE) for hop in hops):
        return "fail"
    return "inconclusive" if INCONCLUSIVE in verdicts else "pass"


def describe_relative_limit(hops: Sequence[Hop]) -> str:
    """Describe the relative error allowed where the recipe says "auto", and why; "" where it says a number."""
    return next(
        (
            f"relative error of at most {hop.relative_limit:.1e} allowed in {hop.precision.upper()}: {hop.noise}"
            for hop in hops
            if hop.noise is not None and hop.relative_limit is not None
        ),
        "",
    )


def describe_distances(hop: Hop) -> str:
    """Return the main distances of a hop, "relative error 1.2e-06, SQNR 120.1 dB"; "" where nothing was compared."""
    values: tuple[tuple[str, float | None, Callable[[float], str]], ...] = (
        ("relative error", hop.relative_error, "{:.1e}".format),
        ("SQNR in dB", hop.sqnr_db, "{:.1f}".format),
        ("top-1 agreement", hop.top1_agreement, percent),
        ("accuracy", hop.accuracy_candidate, percent),
    )
    return ", ".join(f"{name} {shown(value)}" for name, value, shown in values if value is not None)


def files_not_run(hops: Sequence[Hop]) -> dict[str, list[str]]:
    """Return the files that were not run, by reason."""
    return _by_reason((hop.why, hop.run_name) for hop in hops if hop.verdict == NOT_RUN and hop.run_name in _idle(hops))


def files_not_judged(hops: Sequence[Hop]) -> dict[str, list[str]]:
    """Return the comparisons of files that were run with a reference that says nothing on them, by reason."""
    idle = _idle(hops)
    apart = [hop for hop in hops if hop.lacks_reference and hop.run_name not in idle]
    return _by_reason((hop.why, f"{hop.run_name} against {hop.reference}") for hop in apart)


def _idle(hops: Sequence[Hop]) -> set[str]:
    return {hop.run_name for hop in hops if hop.verdict == NOT_RUN and hop.kind == FROM_KERAS}


def _by_reason(names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return names by reason, each once."""
    found: dict[str, dict[str, None]] = {}  # dicts as ordered sets
    for why, name in names:
        found.setdefault(why, {})[name] = None
    return {why: list(files) for why, files in found.items()}


def thresholds_by_precision(thresholds: VerifyThresholds) -> dict[str, Thresholds]:
    """Return the recipe's thresholds by precision."""
    return {"fp32": thresholds.fp32, "fp16": thresholds.fp16, "int8": thresholds.int8}


def read_parity(path: Path, remedy: str = REMEDY) -> ParityReport:
    """Read a verdict.

    Args:
        path: The file.
        remedy: What to do about one that cannot be read, as a sentence. Defaults to `REMEDY`, for a recipe's own.

    Raises:
        ProjectError: It is missing, damaged, of another schema, or contradicts itself; with the file and the key.
    """
    return read_record(ParityReport, path, remedy=remedy, what="verdict")
