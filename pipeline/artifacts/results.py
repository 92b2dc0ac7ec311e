"""What the manifest records of each stage. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Unreadable:
    """An image that is left out because it cannot be read."""

    name: str
    why: str
    sha256: str | None = None  # of a file that opens and shows only when it is decoded that it is damaged


@dataclass(frozen=True)
class Trained:
    """What the manifest of the train stage records.

    Attributes:
        images: how many of each split.
        duplicates: copies of a picture that were left out.
        duplicates_across_splits: of them, those that stood in another split than the one that was kept.
        pictures_in_two_classes: that were left out.
        unreadable_images: that were left out.
        unused_images: of ready-made splits, by the split.
        best_validation_accuracy: of all epochs; None without any, or without validation images.
        skipped_images: unreadable ones, by name, and why.
        source: and those below are of the model's card.
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
    """An engine that was built: the size of the plan in bytes, and the seconds that it took."""

    bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Built:
    """What the manifest of the build stage records.

    Attributes:
        built: engines by ``<flavour>/<precision>[-<variant>]``.
        kept: engines of another flavour, of the same ONNX files.
        why_not: nothing is built here. Defaults to "": it is.
        not_here: what is built here runs on no GPU of this machine. Defaults to "": it may.
    """

    built: Mapping[str, BuiltEngine]
    kept: tuple[str, ...]
    why_not: str = ""
    not_here: str = ""


@dataclass(frozen=True)
class Verified:
    """What the manifest of the verify stage records.

    Attributes:
        verdict: of all.
        images: test images that it was given on.
        accuracy: of Keras on them, as a share.
        skipped_images: unreadable ones, by name, and why.
        warnings: what a person should know of the model or of the images, whatever the verdict.
        images_to_decide: about how many test images would, where these are too few.
        images_left: test images that verify.max_images leaves out.
        images_in_all: about how many images in all would give as many test images as decide.
    """

    verdict: str
    images: int
    accuracy: float
    skipped_images: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    images_to_decide: int | None = None
    images_left: int | None = None
    images_in_all: int | None = None


@dataclass(frozen=True)
class Inferred:
    """What the manifest of the infer stage records.

    Attributes:
        images: that were classified.
        failed: of them, those that could not be read.
        model: the file that answered.
        backend: what ran it.
        precision: of it.
        measured_faster_than: the file that comes first by default. Defaults to None: it is that one.
        at_batch: the batch size at which it was measured.
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
    """What the manifest records.

    Attributes:
        calibration_images: that were read, those held out among them.
        method: of the scales.
        skipped_images: unreadable ones, by name, and why.
    """

    calibration_images: int
    method: str
    skipped_images: Mapping[str, str] = field(default_factory=dict)
