"""`assert_parity`: a test's question whether one classifier answers like another. Importable with NumPy alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from export.errors import DataError, ParityError, ProjectError
from export.metrics.distances import AUTO, IMAGES, FloatNoise, measure_noise
from export.preprocessing import PreprocessingSpec
from export.tensorrt.sidecar import PRECISIONS, Precision
from export.words import count, listed
from pipeline.artifacts.parity_report import FAIL, INCONCLUSIVE, PASS, Hop, describe_distances
from pipeline.recipe.schema import Thresholds, Verify, VerifyThresholds
from pipeline.runners.base import Runner
from pipeline.runners.foreign import OnnxFile
from pipeline.verification.explain.outputs import explain_outputs
from pipeline.verification.explain.remedies import AGAIN, OF_OTHERS
from pipeline.verification.outside.classifiers import (
    Classifier,
    Rows,
    image_size,
    load_classifier,
    name_classifier,
    open_classifier,
)
from pipeline.verification.parity import Answer, Candidate, Reference, judge

if TYPE_CHECKING:
    from pipeline.data.resize import Resize
    from pipeline.verification.outside.named_images import NamedImages

log = logging.getLogger(__name__)

Preprocessing = str | PreprocessingSpec | Rows


def assert_parity(
    reference: Classifier,
    candidate: Classifier,
    images: np.ndarray | Path | str,
    labels: Sequence[int] | np.ndarray | None = None,
    *,
    thresholds: Thresholds | Mapping[str, object] | None = None,
    precision: Precision | None = None,
    preprocessing: Preprocessing | None = None,
    size: tuple[int, int] | None = None,
    resize: Resize = "stretch",
    calibration: np.ndarray | Path | str | None = None,
    batch_size: int = 32,
) -> Hop:
    """Assert that a candidate answers like a reference, as far as thresholds allow.

    Args:
        reference: an ONNX file, a Keras model or its file, or a function from images to rows of logits or
            probabilities.
        candidate: the same.
        images: an array, (N, height, width, channels), uint8 or floats as both take them; or a folder, whose images are
            decoded to uint8 in the order of their sorted paths. A function gets them as they are.
        labels: class of each image; -1 where it is unknown. Defaults to None: no accuracy.
        thresholds: as in a recipe (`verify.thresholds`); keys left out have the defaults of the precision. Defaults to
            None: all of them.
        precision: of the candidate, which decides the default thresholds. Defaults to None: that in an ONNX file,
            "fp32" for anything else.
        preprocessing: from uint8 pixels to what models of floats take: a mode such as "caffe", a `PreprocessingSpec`,
            or a function on (N, height, width, 3). Defaults to None: uint8 images are refused by such a model.
        size: height and width that a folder's images get. Defaults to None: those of the models.
        resize: how. Defaults to "stretch".
        calibration: images that calibrated the candidate, a folder or an array; those that are compared must not be
            among them. Defaults to None: not checked.
        batch_size: images at once. Defaults to 32.

    Returns:
        The comparison, whose verdict is "pass", or "inconclusive" where the images are too few to tell, which is
        logged, as is what a pass on few images shows.

    Raises:
        ParityError: the candidate misses a threshold; with the numbers and the changed answers.
        ProjectError: something cannot be compared.
    """
    if precision is not None and precision not in PRECISIONS:
        raise DataError(f"Expected a precision of {listed(PRECISIONS)}. Received: {precision!r}. Name one of them.")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise DataError(f"Expected a batch_size of 1 or more. Received: {batch_size!r}. Correct it.")
    if size is not None and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise DataError(f"Expected a size (height, width) in pixels, 1 or more. Received: {size!r}. Correct it.")
    names = name_classifier(reference, "the reference"), name_classifier(candidate, "the candidate")
    source, target = load_classifier(reference), load_classifier(candidate)
    decoded = _decoded(images, size or image_size(source) or image_size(target), resize, calibration)
    preprocess = PreprocessingSpec.from_mode(preprocessing).apply if isinstance(preprocessing, str) else preprocessing
    preprocess = preprocess.apply if isinstance(preprocess, PreprocessingSpec) else preprocess
    precision = precision or (target.precision if isinstance(target, OnnxFile) else "fp32")
    every = replace(VerifyThresholds(), **_limits(thresholds, precision))
    with open_classifier(source, decoded.pixels, None) as model:
        inputs = model.inputs(decoded.pixels, preprocess, names[0])
        before = model.rows(inputs, batch_size)
        if (before == before[0]).all() and (decoded.pixels != decoded.pixels[0]).any():
            raise DataError(
                f"Expected answers that differ from image to image. Received: one row for all "
                f"{count(len(before), 'image')} from {names[0]}. Nothing can be shown by it: see what it is fed with."
            )
        with open_classifier(target, decoded.pixels, before.shape[1]) as other:
            own = other.inputs(decoded.pixels, preprocess, names[1])
            after = other.rows(own, batch_size)
            extreme = other.extreme(own) if other.extreme is not None else None
        floors = [one.log_floor for one in (model, other) if one.log_floor is not None]
        if floors:  # one gives probabilities, and their logarithms are all that both give
            before, after = model.logarithms(before, max(floors)), other.logarithms(after, max(floors))
        noise = None
        if getattr(every, precision).relative_error == AUTO and inputs.dtype != np.uint8 and np.isfinite(before).all():

            def predict(values: np.ndarray) -> np.ndarray:
                rows = model.rows(values, batch_size)
                return model.logarithms(rows, max(floors)) if floors else rows

            noise = measure_noise(predict, inputs[:IMAGES], float(np.abs(before).max()))
    hop = _judged(names, precision, every, decoded, labels, before, Answer(after, PASS, extreme=extreme), noise)
    if hop.verdict == FAIL:
        raise ParityError(_failure(hop, decoded.names, before, after))
    share: Thresholds = getattr(every, precision)
    if hop.verdict == PASS and share.top1_agreement is not None and hop.images < Verify().min_images:
        images = count(hop.images, "image")
        log.warning("%s against %s: pass on %s, which shows little: %s", *names[::-1], images, hop.certainty)
    if hop.verdict == INCONCLUSIVE:
        log.warning("%s against %s: %s", hop.candidate, hop.reference, hop.why)
    return hop


def _limits(thresholds: Thresholds | Mapping[str, object] | None, precision: Precision) -> dict[str, Thresholds]:
    if isinstance(thresholds, Thresholds):
        return {precision: thresholds}
    from pipeline.recipe.load import read_section

    return {precision: read_section(thresholds or {}, getattr(VerifyThresholds(), precision), "thresholds")}


def _decoded(
    images: np.ndarray | Path | str,
    size: tuple[int, int] | None,
    resize: Resize,
    calibration: np.ndarray | Path | str | None,
) -> NamedImages:
    """Return the images with names, none of which calibrated."""
    from pipeline.data.decode import DecodeSpec
    from pipeline.data.resize import Resize as Modes
    from pipeline.verification.outside.named_images import (
        NamedImages,
        hash_folder,
        hash_pixels,
        read_folder,
        refuse_shared_images,
    )

    if resize not in get_args(Modes):
        raise DataError(f"Expected resize as {listed(get_args(Modes))}. Received: {resize!r}. Name one of them.")
    _refuse_other_kinds(images, "images")
    if isinstance(images, np.ndarray):
        if images.ndim != 4 or not len(images):
            raise DataError(f"Expected images of shape (N, height, width, channels). Received: {images.shape}.")
        decoded = NamedImages(tuple(f"image {index}" for index in range(len(images))), images, ())
    elif size is None:
        raise DataError(
            "Expected the size of the images of a folder. Received: models that say none. Pass size=(height, width)."
        )
    else:
        decoded = read_folder(Path(images), DecodeSpec(size, resize))
    if calibration is None:
        return decoded
    _refuse_other_kinds(calibration, "calibration images")
    if decoded.sha256 and not isinstance(calibration, np.ndarray):
        refuse_shared_images(dict(zip(decoded.sha256, decoded.names)), hash_folder(Path(calibration)))
        return decoded
    if not isinstance(calibration, np.ndarray):
        if decoded.pixels.dtype != np.uint8:
            raise DataError(
                f"Expected calibration images as an array, like the images. Received: the folder {calibration}, whose "
                "pixels cannot be told from preprocessed images. Preprocess them alike."
            )
        calibration = read_folder(Path(calibration), DecodeSpec(decoded.pixels.shape[1:3], resize)).pixels
    if calibration.ndim != 4 or not len(calibration) or calibration.dtype != decoded.pixels.dtype:
        raise DataError(
            f"Expected calibration images like the images, {decoded.pixels.dtype} of shape (N, height, width, "
            f"channels), because they are told apart by content. Received: {calibration.dtype} of shape "
            f"{calibration.shape}. Hand them in alike."
        )
    names = [f"calibration image {index}" for index in range(len(calibration))]
    refuse_shared_images(
        dict(zip(hash_pixels(decoded.pixels), decoded.names)), dict(zip(hash_pixels(calibration), names))
    )
    return decoded


def _refuse_other_kinds(images: object, what: str) -> None:
    if not isinstance(images, (np.ndarray, str, Path)):
        raise DataError(
            f"Expected {what} as an array (N, height, width, channels) or a folder. Received: "
            f"{type(images).__name__}. Make one array of them, such as with np.stack."
        )


def _judged(
    names: tuple[str, str],
    precision: Precision,
    thresholds: VerifyThresholds,
    decoded: NamedImages,
    labels: Sequence[int] | np.ndarray | None,
    before: np.ndarray,
    answer: Answer,
    noise: FloatNoise | None,
) -> Hop:
    known = np.full(len(before), -1) if labels is None else np.asarray(labels)
    if known.shape != (len(before),) or known.dtype.kind not in "iu":
        raise DataError(
            f"Expected a label for each of {count(len(before), 'image')}, the number of its class. Received: "
            f"{known.dtype} of shape {known.shape}. Give integers, and -1 where the class is unknown."
        )

    def opened() -> Runner:
        raise ProjectError("Expected answers that are there. Received: a question to run the file again.")

    candidate = Candidate(names[1], "onnxruntime", precision, "", None, opened)
    reference = Reference(names[0], "", decoded.pixels, known, before, noise)
    return judge([candidate], {candidate.run_name: answer}, reference, thresholds).hops[0]


def _failure(hop: Hop, names: Sequence[str], before: np.ndarray, after: np.ndarray) -> str:
    answers = ""
    if before.shape == after.shape:
        rows = zip(names, before.argmax(axis=1), after.argmax(axis=1))
        changed = [f"{name}: {new} instead of {old}" for name, old, new in rows if old != new]
        answers = f" {len(changed):,} of {count(len(names), 'answer')} changed"
        answers += f": {listed(changed, separator='; ')}." if changed else "."
    found = explain_outputs(before, after, None, hop.precision, ())
    causes = [f"{one.text} {one.remedy.replace(AGAIN, OF_OTHERS)}" for one in found]
    advice = causes or [
        "See that both get the same preprocessing, then compare the files before and after each step of the conversion."
    ]
    return (
        f"Expected {hop.candidate} ({hop.precision}) to answer like {hop.reference}. Received: {hop.why}. Measured: "
        f"{describe_distances(hop) or 'nothing'}.{answers} {' '.join(advice)}"
    )
