"""Results of the stages as their manifests record them. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Unreadable:
    """An image that is left out because it cannot be read."""

    name: str
    why: str
    sha256: str | None = None  # of a file that opens, and whose damage shows only when it is decoded


@dataclass(frozen=True)
class Trained:
    """Result of the train stage.

    Attributes:
        images: Number of images by split.
        duplicates: Number of duplicate pictures that were left out.
        duplicates_across_splits: How many of these were in another split than the one that was kept.
        pictures_in_two_classes: Pictures left out because they occur in two classes.
        unreadable_images: Images left out because they cannot be read.
        unused_images: Number of unused images by ready-made split.
        best_validation_accuracy: Best of all epochs, as a share; None without epochs or validation images.
        skipped_images: Reasons why images were unreadable, by name.
        source: This and all that follow come from the model's card.
    """

    images: Mapping[str, int]
    duplicates: int
    duplicates_across_splits: int
    pictures_in_two_classes: tuple[str, ...]
    unreadable_images: tuple[Unreadable, ...]
    unused_images: Mapping[str, int]
    best_validation_accuracy: float | None
    skipped_images: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    written_by: str | None = None
    changes: tuple[str, ...] = ()
    backbone: str | None = None
    transfer: bool | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was built: the size of its plan in bytes, and the duration in seconds."""

    bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Built:
    """Result of the build stage.

    Attributes:
        built: Engines by ``<flavour>/<precision>[-<variant>]``.
        kept: Engines of another flavour that were built from the same ONNX files.
        why_not: Why nothing was built. Defaults to "": something was.
        not_here: Why the engines run on no GPU of this machine. Defaults to "": they may.
    """

    built: Mapping[str, BuiltEngine]
    kept: tuple[str, ...]
    why_not: str = ""
    not_here: str = ""


@dataclass(frozen=True)
class VerifiedHop:
    """A comparison in short.

    Attributes:
        hop: Its two ends, such as "Keras -> export/model.onnx".
        verdict: "pass", "inconclusive", "fail" or "not run".
        sqnr_db: SQNR of the logits in dB; None where both are equal, or nothing was compared.
        changed: Number of images with another answer; None where nothing was compared.
        near_ties: How many of these were near ties in Keras; None where it is unknown.
        why: Which threshold was missed, or why it did not run.
    """

    hop: str
    verdict: str
    sqnr_db: float | None = None
    changed: int | None = None
    near_ties: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Verified:
    """Result of the verify stage.

    Attributes:
        verdict: Verdict over all hops.
        images: Number of test images.
        accuracy: Accuracy of Keras on those with a label, as a share; None where none has one.
        skipped_images: Reasons why images were unreadable, by name.
        warnings: What a user should know about the model or the images, whatever the verdict.
        images_to_decide: Estimated number of test images that would decide, where these are too few.
        images_left: Number of test images that verify.max_images leaves out.
        images_in_all: Estimated total number of images that gives so many test images.
        hops: Comparisons in short.
        hints: Causes of failed comparisons, each in a few sentences; ``verify/diagnosis.json`` has them by field.
    """

    verdict: str
    images: int
    accuracy: float | None
    skipped_images: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    images_to_decide: int | None = None
    images_left: int | None = None
    images_in_all: int | None = None
    hops: tuple[VerifiedHop, ...] = ()
    hints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inferred:
    """Result of the infer stage.

    Attributes:
        images: Number of images.
        failed: How many of them could not be read.
        model: File that classified them.
        backend: Backend that ran it.
        precision: Precision of the file.
        measured_faster_than: File that would be taken by default. Defaults to None: it was taken.
        at_batch: Batch size at which the two were compared.
    """

    images: int
    failed: int
    model: str
    backend: str
    precision: str
    measured_faster_than: str | None = None
    at_batch: int | None = None


@dataclass(frozen=True)
class Quantized:
    """Result of the quantize stage.

    Attributes:
        calibration_images: Number of images read, including those held out.
        method: Calibration method of the scales.
        skipped_images: Reasons why images were unreadable, by name.
    """

    calibration_images: int
    method: str
    skipped_images: Mapping[str, str] = field(default_factory=dict)
