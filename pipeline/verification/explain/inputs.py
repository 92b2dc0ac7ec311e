"""Hypotheses about the pixels: Keras is run on what a file with another preprocessing would feed it.

NumPy and the standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from export.preprocessing import PreprocessingSpec, grey_levels
from pipeline.artifacts.diagnosis import Cause
from pipeline.verification.explain.fit import NEAR, Explanation, evidence_of, explains, fit_db

SCREENED = 4  # images that all hypotheses are tried on; the best is confirmed on all
MODES = ("caffe", "tf", "torch", "unit", "none")
BY_CARD = (
    "Take the file's preprocessing from the model's card: export again, or, if the card is wrong, set "
    "model.preprocessing in the recipe to what the model was trained with."
)


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """What a file may do to pixels instead of what the card says.

    Attributes:
        cause: What would be wrong.
        what: A phrase, after "with".
        text: What is wrong, as a sentence.
        inputs: From uint8 RGB (N, height, width, 3) to float32 inputs of the network, of that shape.
    """

    cause: Cause
    what: str
    text: str
    inputs: Callable[[np.ndarray], np.ndarray]


def hypotheses(spec: PreprocessingSpec, classes_of: str = "the card") -> Iterator[Hypothesis]:
    """Yield what may be wrong with the preprocessing, the likeliest first.

    Args:
        spec: What the card says.
        classes_of: Who says so, for the texts. Defaults to "the card".
    """
    mean = spec.mean_image.array if spec.mean_image is not None else np.asarray(spec.mean, np.float32)
    scale = np.asarray(spec.scale, np.float32)
    order = list(spec.order)

    def raw(pixels: np.ndarray) -> np.ndarray:
        return (grey_levels(pixels) if spec.grey else pixels)[..., order].astype(np.float32)

    names = ("red", "green", "blue")
    if not spec.grey:
        swapped = "The file reads red as blue and blue as red (RGB and BGR are exchanged)"
        yield Hypothesis(
            "channel order", "red and blue exchanged", f"{swapped}.", lambda pixels: spec.apply(pixels[..., ::-1])
        )
        yield Hypothesis(
            "channel order",
            "red and blue exchanged after the mean",
            f"{swapped}, after the mean of each channel was subtracted.",
            lambda pixels: spec.apply(pixels)[..., ::-1],
        )
        for other in list(permutations(range(3)))[1:]:
            if other != (2, 1, 0):
                text = ", ".join(names[channel] for channel in other)
                yield Hypothesis(
                    "channel order",
                    f"the channels in the order {text}",
                    f"The file reads the colour channels in the order {text}.",
                    lambda pixels, other=other: spec.apply(pixels[..., list(other)]),  # type: ignore[misc]
                )
    if np.any(mean != 0):
        yield Hypothesis(
            "mean missing",
            "the mean not subtracted",
            "The file does not subtract the mean of the training images.",
            lambda pixels: raw(pixels) * scale,
        )
        yield Hypothesis(
            "preprocessing",
            "the mean subtracted twice",
            "The file subtracts the mean of the training images twice.",
            lambda pixels: (raw(pixels) - 2 * mean) * scale,
        )
        yield Hypothesis(
            "preprocessing",
            "the mean added",
            "The file adds the mean of the training images instead of subtracting it.",
            lambda pixels: (raw(pixels) + mean) * scale,
        )
        if np.any(mean != mean[..., ::-1]):
            yield Hypothesis(
                "preprocessing",
                "the mean of red and of blue exchanged",
                "The file subtracts the mean of red from blue and the mean of blue from red.",
                lambda pixels: (raw(pixels) - mean[..., ::-1]) * scale,
            )
        if np.any(scale != 1):
            yield Hypothesis(
                "preprocessing",
                "the mean subtracted after scaling",
                "The file subtracts the mean after the pixels were scaled, instead of before.",
                lambda pixels: raw(pixels) * scale - mean,
            )
    if np.any(scale != 1):
        yield Hypothesis(
            "preprocessing",
            "the scale left out",
            "The file does not scale the pixels after subtracting the mean.",
            lambda pixels: raw(pixels) - mean,
        )
        yield Hypothesis(
            "preprocessing",
            "the scale applied twice",
            "The file scales the pixels twice.",
            lambda pixels: (raw(pixels) - mean) * scale * scale,
        )
    for mode in MODES:
        other_spec = replace(PreprocessingSpec.from_mode(mode), grey=spec.grey)
        if (other_spec.channel_order, other_spec.mean, other_spec.scale) != (spec.channel_order, spec.mean, spec.scale):
            cause: Cause = "mean missing" if mode == "none" and not np.any(scale != 1) else "preprocessing"
            yield Hypothesis(
                cause,
                f"the preprocessing {mode!r} of keras.applications",
                f"The file preprocesses pixels as the mode {mode!r} of keras.applications does; "
                f"{classes_of} says {spec.mode!r}.",
                other_spec.apply,
            )
    yield Hypothesis(
        "preprocessing",
        "pixels divided by 255 first",
        "The file divides pixels by 255 before the rest of the preprocessing, which expects 0 to 255.",
        lambda pixels: (raw(pixels) / np.float32(255) - mean) * scale,
    )
    yield Hypothesis(
        "preprocessing",
        "pixels multiplied by 255 at the end",
        "The file gives the network values that are 255 times too large: a division by 255 is missing.",
        lambda pixels: spec.apply(pixels) * np.float32(255),
    )
    yield Hypothesis(
        "preprocessing",
        "height and width exchanged",
        "The file exchanges the height and the width of the image.",
        lambda pixels: _square(spec.apply(pixels), lambda x: x.swapaxes(1, 2)),
    )
    yield Hypothesis(
        "preprocessing",
        "images mirrored",
        "The file mirrors the image, left to right.",
        lambda pixels: spec.apply(pixels)[:, :, ::-1],
    )
    yield Hypothesis(
        "preprocessing",
        "images upside down",
        "The file turns the image upside down.",
        lambda pixels: spec.apply(pixels)[:, ::-1],
    )
    yield Hypothesis(
        "preprocessing",
        "channels first taken as channels last",
        "The file reads an image of (height, width, 3) as (3, height, width) by a reshape instead of a transpose.",
        lambda pixels: (lambda x: x.reshape(len(x), 3, *x.shape[1:3]).transpose(0, 2, 3, 1))(spec.apply(pixels)),
    )
    if not spec.grey:
        yield Hypothesis(
            "preprocessing",
            "images without colour",
            "The file turns the image into grey levels first.",
            lambda pixels: spec.apply(grey_levels(pixels)),
        )


def _square(values: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return changed square images; others as they are."""
    return change(values) if values.shape[1] == values.shape[2] else values


def explain_inputs(
    predict: Callable[[np.ndarray], np.ndarray],
    pixels: np.ndarray,
    received: np.ndarray,
    spec: PreprocessingSpec,
    precision: str,
) -> list[Explanation]:
    """Explain logits by another preprocessing.

    Args:
        predict: From float32 inputs of the network to Keras' logits.
        pixels: uint8 RGB (N, height, width, 3).
        received: Logits of the candidate for them.
        spec: Preprocessing that the card says.
        precision: Of the candidate.
    """
    if not np.isfinite(received).all():
        return []
    few = pixels[:SCREENED]
    without = fit_db(predict(spec.apply(few)), received[: len(few)])
    fits = [
        (fit_db(predict(hypothesis.inputs(few)), received[: len(few)]), hypothesis) for hypothesis in hypotheses(spec)
    ]
    best, hypothesis = _best(fits)
    if not explains(precision, best, without):
        return []
    fit = fit_db(predict(hypothesis.inputs(pixels)), received)
    without = fit_db(predict(spec.apply(pixels)), received)
    if fit < NEAR[precision] or not explains(precision, fit, without):
        return []
    return [
        Explanation(hypothesis.cause, hypothesis.text, evidence_of(hypothesis.what, fit, without), BY_CARD),
    ]


def _best(fits: Sequence[tuple[float, Hypothesis]]) -> tuple[float, Hypothesis]:
    """Return the best fit; of those within 3 dB, which are the same but for rounding, the first."""
    highest = max(fit for fit, _ in fits)
    return next((fit, hypothesis) for fit, hypothesis in fits if fit >= highest - 3)
