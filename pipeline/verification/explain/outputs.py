"""Hypotheses about the outputs alone: what was done to the logits, or to the order of classes and images.

They need no model and no library. NumPy and the standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.words import count, listed
from pipeline.artifacts.diagnosis import Cause
from pipeline.runners.base import softmax
from pipeline.verification.explain.fit import NEAR, Explanation, evidence_of, explains, fit_db
from pipeline.verification.explain.remedies import AGAIN

FEWEST = 3  # images: with fewer, a factor and an offset, or an order of classes, fit by chance
_MOST_ENTRIES = 4_000_000  # of a matrix of classes by classes, 32 MB in float64


def explain_outputs(
    expected: np.ndarray,
    received: np.ndarray,
    probabilities: np.ndarray | None,
    precision: str,
    classes: Sequence[str],
) -> list[Explanation]:
    """Explain logits from the reference's logits.

    Args:
        expected: Logits of the reference, (N, C).
        received: Logits of the candidate.
        probabilities: Probabilities that the candidate gave with them; None if unknown.
        precision: Of the candidate.
        classes: Names of the outputs.
    """
    if received.shape != expected.shape:
        return []
    if not np.isfinite(received).all():
        return []
    without = fit_db(expected, received)
    found = [
        _activation(expected, received, precision, without),
        _repeated(expected, received, precision, without),
        _image_order(expected, received, precision, without),
        _class_order(expected, received, precision, without, classes),
        _linear(expected, received, precision, without),
    ]
    explanations = [explanation for explanation in found if explanation is not None][:1]
    if not explanations and probabilities is not None and (wrong := _probabilities(received, probabilities)):
        explanations.append(wrong)
    return explanations


def _activation(expected: np.ndarray, received: np.ndarray, precision: str, without: float) -> Explanation | None:
    """Find an activation that was applied to the logits."""
    once, twice = softmax(expected), softmax(softmax(expected))
    hypotheses = (
        ("a softmax", "are probabilities already", once),
        ("two softmaxes", "are probabilities of probabilities", twice),
        ("a log-softmax", "are logarithms of probabilities", _log_softmax(expected)),
        ("a second softmax", "are logarithms of probabilities of probabilities", _log_softmax(once)),
        ("a third softmax", "are logarithms of probabilities that went through three softmaxes", _log_softmax(twice)),
        ("a sigmoid", "went through a sigmoid", 0.5 * (1 + np.tanh(np.asarray(expected, np.float64) / 2))),
        ("a ReLU", "have no negative values: they went through a ReLU", np.maximum(expected, 0)),
    )
    fit, name, what = max((fit_db(values, received), name, what) for name, what, values in hypotheses)
    if not explains(precision, fit, without):
        return None
    softmaxes = name.endswith((" softmax", " softmaxes"))
    again = " A softmax over probabilities is nearly equal for all classes." if softmaxes else ""
    return Explanation(
        "softmax twice" if softmaxes else "activation",
        f"The file's logits {what}, so an activation is applied once too often.{again}",
        evidence_of(f"{name} applied to them", fit, without),
        "Export the model without its last activation; for a model of your own, say what it returns with "
        "model.output (logits or softmax) in the recipe.",
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _repeated(expected: np.ndarray, received: np.ndarray, precision: str, without: float) -> Explanation | None:
    """Find rows that repeat the first row of their batch."""
    rows = len(received)
    if rows < 2:
        return None
    same = (received[1:] == received[:-1]).all(axis=1) & (expected[1:] != expected[:-1]).any(axis=1)
    first = np.flatnonzero(np.concatenate([[True], ~same]))  # of each group of equal rows
    if same.sum() < max(1, rows // 2):
        return None
    last = np.append(first[1:], rows) - 1
    group = np.searchsorted(first, np.arange(rows), side="right") - 1
    fits = {"first": fit_db(expected[first][group], received), "last": fit_db(expected[last][group], received)}
    which, fit = max(fits.items(), key=lambda item: item[1])
    if not explains(precision, fit, without):
        return None
    length = int(np.diff(np.append(first, rows)).max())
    return Explanation(
        "repeated row",
        f"Different images get the same answer: the answer to the {which} image of a batch is returned for all of it.",
        f"{int(same.sum()):,} of {count(rows, 'row')} of logits repeat the row before, up to {length:,} in a row; "
        f"taken as the answers to the {which} image of each, they fit with {fit:.1f} dB, else with {without:.1f} dB.",
        "Look at how the batch reaches the model: the input shape that was set, the size of what was copied, and "
        f"whether the graph has a Slice or Expand over the batch. {AGAIN}.",
    )


def _image_order(expected: np.ndarray, received: np.ndarray, precision: str, without: float) -> Explanation | None:
    """Find answers that belong to other images."""
    order = _matching(expected, received)
    if order is None or (order == np.arange(len(order))).all():
        return None
    moved = np.flatnonzero(order != np.arange(len(order)))
    fit, fit_moved = fit_db(expected[order], received), fit_db(expected[order[moved]], received[moved])
    if not explains(precision, fit_moved, fit_db(expected[moved], received[moved])) or fit < NEAR[precision]:
        return None
    examples = listed((f"{int(order[row])} in place of {row}" for row in moved[:3]), most=3)
    return Explanation(
        "batch dependence",
        "The answers are right, but in another order: an image gets the answer to another image of its batch.",
        f"{count(len(moved), 'answer')} of {len(order):,} belong to another image (image {examples}). "
        + evidence_of("the answers in that order", fit, without),
        "Look at how answers are put back in order after a batch, and at the reshapes and transposes of the graph "
        "that move the batch dimension.",
    )


def _class_order(
    expected: np.ndarray, received: np.ndarray, precision: str, without: float, classes: Sequence[str]
) -> Explanation | None:
    """Find outputs that hold the values of other classes."""
    if len(expected) < FEWEST:
        return None
    order = _matching(expected.T, received.T)
    if order is None or (order == np.arange(len(order))).all():
        return None
    moved = np.flatnonzero(order != np.arange(len(order)))
    fit = fit_db(expected[:, order], received)
    columns = expected[:, order[moved]], received[:, moved]
    if fit < NEAR[precision] or not explains(precision, fit_db(*columns), fit_db(expected[:, moved], columns[1])):
        return None
    names = [classes[index] if index < len(classes) else f"class {index}" for index in range(len(order))]
    examples = listed((f"output {i} holds {names[order[i]]!r} instead of {names[i]!r}" for i in moved[:3]), most=3)
    return Explanation(
        "class order",
        f"The classes are in another order{_named_order(order, names)}: {count(len(moved), 'output')} of "
        f"{len(order):,} hold the value of another class.",
        f"{examples[:1].upper()}{examples[1:]}. " + evidence_of("the classes in that order", fit, without),
        "Give the names in the order of the model's outputs with model.classes, and see that the file was exported "
        "from the model of this recipe. Folders sort their names as text: 10 stands before 2.",
    )


def _named_order(order: np.ndarray, names: Sequence[str]) -> str:
    """Return what an order of classes is, after a comma; "" if it is none of the known."""
    size = len(order)
    for by, key in (("sorted by their names", str), ("sorted by their names in lower case", str.lower)):
        if (order == sorted(range(size), key=lambda index: key(names[index]))).all():
            return f", {by}"
    if (order == sorted(range(size), key=str)).all():
        return ", sorted by their numbers as text (0, 1, 10, 11, 2)"
    if (order == np.arange(size)[::-1]).all():
        return ", reversed"
    for shift in (1, -1):
        if (order == np.roll(np.arange(size), shift)).all():
            return ", shifted by one"
    if (order != np.arange(size)).sum() == 2:
        return ", two of them exchanged"
    return ""


def _matching(expected: np.ndarray, received: np.ndarray) -> np.ndarray | None:
    """Return for each row of received the row of expected that it equals best, each used once; int64.

    Pairs are taken by their distance, the nearest first. None if there are too many rows.
    """
    rows = len(expected)
    if rows < 2 or rows**2 > _MOST_ENTRIES:
        return None
    before, after = np.asarray(expected, np.float64), np.asarray(received, np.float64)
    distances = (after**2).sum(axis=1)[:, None] + (before**2).sum(axis=1)[None] - 2 * after @ before.T
    # Rows that already fit stay, so that equal rows are not exchanged.
    distances[np.arange(rows), np.arange(rows)] -= 1e-9 * max(float(np.abs(distances).max()), 1e-30)
    best = distances.argmin(axis=1)
    if len(set(best.tolist())) == rows:
        return np.asarray(best, np.int64)
    order, used = np.full(rows, -1, np.int64), np.zeros(rows, bool)
    for pair in np.argsort(distances, axis=None):
        row, column = divmod(int(pair), rows)
        if order[row] < 0 and not used[column]:
            order[row], used[column] = column, True
            if used.all():
                break
    return order


def _linear(expected: np.ndarray, received: np.ndarray, precision: str, without: float) -> Explanation | None:
    """Find a factor and an offset of all logits."""
    if len(expected) < FEWEST or expected.size < 8:
        return None
    before, after = np.asarray(expected, np.float64).ravel(), np.asarray(received, np.float64).ravel()
    centred = before - before.mean()
    if not (power := float(centred @ centred)):
        return None
    factor = float(centred @ (after - after.mean())) / power
    offset = float(after.mean() - factor * before.mean())
    # Without the means, because a large offset alone would fit almost any logits.
    fit = fit_db(after - after.mean(), factor * centred)
    if abs(factor) < 1e-3 or not explains(precision, fit, without):
        return None
    small = abs(offset) < 1e-3 * float(np.abs(after).max())
    formula = f"{factor:.3g} times Keras' logits" + (
        "" if small else f" {'+' if offset > 0 else '-'} {abs(offset):.3g}"
    )
    return Explanation(
        "logits scaled",
        f"All logits are {formula}. A factor leaves the order of the classes as it is, but changes every probability.",
        evidence_of("this factor and offset", fit, without),
        "Look at the last layer's weights and scale, and at a temperature or a product behind it.",
        settles=False,
    )


def _probabilities(received: np.ndarray, probabilities: np.ndarray) -> Explanation | None:
    """Find what was done to the probabilities of logits that are right."""
    own = softmax(received)
    if probabilities.shape != own.shape or fit_db(own, probabilities) >= NEAR["fp16"]:
        return None
    sigmoid = 0.5 * (1 + np.tanh(received / 2))
    hypotheses: tuple[tuple[Cause, str, str, np.ndarray], ...] = (
        ("softmax twice", "a second softmax", "went through a softmax twice", softmax(own)),
        ("activation", "no softmax", "are the logits: the softmax is missing", received),
        ("activation", "a sigmoid", "went through a sigmoid instead of a softmax", sigmoid),
    )
    for cause, name, what, values in hypotheses:
        if fit_db(values, probabilities) >= NEAR["fp16"]:
            return Explanation(
                cause,
                f"The logits are right, but the file's probabilities {what}.",
                evidence_of(name, fit_db(values, probabilities), fit_db(own, probabilities)).replace(
                    "Keras' logits and the file's", "the probabilities and those of the file"
                ),
                "Export the file again with exactly one softmax behind the logits, over the classes.",
            )
    return None
