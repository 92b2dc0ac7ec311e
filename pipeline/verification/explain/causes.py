"""Why a comparison failed, computed from evidence. NumPy and the standard library only, Python 3.10 syntax.

Each module tries hypotheses of one kind. A hypothesis counts only if it explains: under it the candidate's logits are
about as close to the reference as the precision allows, and far closer than without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from export.words import count
from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.parity_report import STEP, TOP_K, VALUES_OF, Hop
from pipeline.verification.explain.batches import explain_batches, run_in_batches
from pipeline.verification.explain.case import Case
from pipeline.verification.explain.engines import explain_engine
from pipeline.verification.explain.fit import NEAR, Explanation, difference_in_words, fit_db
from pipeline.verification.explain.inputs import explain_inputs
from pipeline.verification.explain.misfits import explain_misfits
from pipeline.verification.explain.outputs import explain_outputs
from pipeline.verification.explain.remedies import AGAIN, COMPARE_LAYERS, make_again

if TYPE_CHECKING:
    import keras
    import onnx

log = logging.getLogger(__name__)

MOST_HINTS = 2  # of one run
_NO_LAYERS = ("preprocessing", "logits", "probabilities", "graph")  # begin the names of nodes, and are no Keras layers


def explain(hops: Sequence[Hop], case: Case) -> tuple[Hint, ...]:
    """Explain the comparisons at fault; never raises, because nothing may hide a verdict.

    Args:
        hops: Those at fault, see `pipeline.verification.culprits`.
        case: What was compared.

    Returns:
        At most `MOST_HINTS` hints a run, the most specific first; the cause is "unknown" where none was found.
    """
    hints: list[Hint] = []
    runs: dict[str, Hop] = {}
    for hop in hops:
        if hop.kind != TOP_K:
            runs.setdefault(hop.run_name, hop)
    unlike = {hop.run_name for hop in hops if hop.reference.startswith(VALUES_OF)}
    for hop in runs.values():
        try:
            found = _explain_run(hop, case, hop.run_name in unlike) or [_unknown(hop)]
        except Exception as error:  # of Keras, ONNX Runtime or a damaged file: the verdict stands without a cause
            log.warning("%s: why it fails could not be computed: %s", hop.run_name, error)
            log.debug("why:", exc_info=True)
            found = [_unknown(hop).changed(text=f"The search for the cause ended in an error: {error!s:.300}")]
        ranked = sorted(found, key=lambda explanation: not explanation.layer)
        again = make_again(hop.candidate, hop.precision, case.own)
        hints += [
            Hint(hop.run_name, hop.reference, e.cause, e.text, e.evidence, e.remedy.replace(AGAIN, again), e.layer)
            for e in ranked[:MOST_HINTS]
        ]
    return tuple(hints)


def _explain_run(hop: Hop, case: Case, unlike: bool) -> list[Explanation]:
    """Return what explains one run; the search ends where an explanation settles it.

    Args:
        hop: Of the run, at fault.
        case: What was compared.
        unlike: Whether the file's weights and scales do not follow from the file it was made from.
    """
    misfits = _misfits(hop, case) if unlike else []
    if misfits and hop.reference.startswith(VALUES_OF):  # nothing else fails, so the answers show nothing
        return misfits
    found = _search(hop, case)
    return found if any(e.cause != "unknown" for e in found) else misfits or found


def _misfits(hop: Hop, case: Case) -> list[Explanation]:
    answer = case.answers[hop.run_name]
    if answer.rounded is None or not answer.rounded.misfits:
        return []
    return [explain_misfits(answer.rounded, _expected(hop, case), answer.logits, hop.precision)]


def _search(hop: Hop, case: Case) -> list[Explanation]:
    """Return what explains the answers of a run."""
    candidate, precision = case.candidate_of(hop), hop.precision
    answer = case.answers[candidate.run_name]
    path = case.paths.get(candidate.name)
    if candidate.why_not:
        return [explain_engine(candidate.why_not)]
    expected = _expected(hop, case)
    found: list[Explanation] = []
    if answer.extreme is not None and answer.extreme.changed:
        from pipeline.verification.explain.half import explain_overflow

        found.append(explain_overflow(answer.extreme, expected, answer.logits, precision))
    if _settled(found):
        return found
    if answer.logits is not None:
        found += explain_outputs(expected, answer.logits, answer.probabilities, precision, case.card.classes)
    if _settled(found):
        return found
    file = path if path is not None and candidate.name.endswith(".onnx") else None
    pixels = case.pixels
    runs = run_in_batches(candidate, pixels)
    if runs is None:
        return found
    read = partial(case.graph, file, precision) if file is not None else None
    by_batch = explain_batches(expected[: len(pixels)], runs, precision, file, answer.logits, read)
    found += [_located(explanation, read, pixels) for explanation in by_batch]
    if _settled(found) or runs.together is None:
        return found
    model = case.model if expected is case.reference.logits else None
    if model is not None:
        # Scales of INT8 that do not fit look like other pixels, so without the rounding that they do.
        own = _unrounded(read(), pixels) if read is not None and precision == "int8" else None
        logits = runs.together if own is None else own
        found += explain_inputs(_predict(model), pixels, logits, case.card.preprocessing, precision, _first_layer(read))
    if _settled(found) or read is None or candidate.backend != "onnxruntime":
        return found
    found += _explain_file(read(), hop, case, expected[: len(pixels)], runs.together, model)
    if not found and precision == "int8" and model is not None:
        found += _rounding_of_all(expected[: len(pixels)], runs.together, read(), pixels)
    return found


def _expected(hop: Hop, case: Case) -> np.ndarray:
    """Return the logits that a run should have given: Keras', or those of a source that is wrong itself."""
    keras_logits = case.reference.logits
    source = case.candidate(hop.reference) if hop.kind == STEP else None
    logits = case.answers[source.run_name].logits if source is not None else None
    if source is None or logits is None or fit_db(keras_logits, logits) >= NEAR[source.precision]:
        return keras_logits
    return logits


def _explain_file(
    model: onnx.ModelProto,
    hop: Hop,
    case: Case,
    expected: np.ndarray,
    received: np.ndarray,
    keras_model: keras.Model | None,
) -> list[Explanation]:
    """Return what an ONNX file shows: its scales, its types, its layers."""
    from pipeline.verification.explain.half import explain_weights_beyond
    from pipeline.verification.explain.layers import explain_layers
    from pipeline.verification.explain.quantized import explain_scales

    # Images whose answers are not finite first.
    order = np.argsort(np.isfinite(received).all(axis=1), kind="stable")
    pixels, expected, received = case.pixels[order], expected[order], received[order]
    found: list[Explanation] = []
    changes = case.changes if hop.precision == "int8" else {}
    if hop.precision == "int8":
        found += explain_scales(model, pixels, expected, received, case.card.preprocessing, changes)
    if hop.precision != "fp32" and not _settled(found):
        found += explain_weights_beyond(model)
    if not _settled(found) and keras_model is not None:
        spec = case.card.preprocessing
        source = next((c for c in case.candidates if c.precision == "fp32" and c.backend == "onnxruntime"), None)
        earlier = case.paths.get(source.name) if source is not None and hop.precision != "fp32" else None
        origin = case.graph(earlier, "fp32") if earlier is not None else None
        found += explain_layers(hop.run_name, hop.precision, model, keras_model, spec, pixels, changes, origin)
    return found


def _unrounded(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    """Return the logits of a file without the rounding of its activations."""
    from pipeline.verification.explain.twin import run, without_rounding

    return next(iter(run(without_rounding(model), pixels).values()))


def _rounding_of_all(
    expected: np.ndarray, received: np.ndarray, model: onnx.ModelProto, pixels: np.ndarray
) -> list[Explanation]:
    """Say of INT8 logits that are nearly right, where no layer is wrong on its own, that rounding adds up."""
    fit, exact = fit_db(expected, received), fit_db(expected, _unrounded(model, pixels))
    if min(fit, exact) < NEAR["int8"]:
        return []
    return [
        Explanation(
            "unknown",
            "No fault was found: each layer is as close to Keras as INT8 allows where it is fed with Keras' values, "
            "and the rounding of all of them adds up to more than the threshold allows.",
            f"On {count(len(pixels), 'image')}, the logits differ from Keras' by {difference_in_words(fit)} "
            f"({fit:.1f} dB SQNR), and without the rounding of activations by {difference_in_words(exact)} "
            f"({exact:.1f} dB).",
            "Let some layers stay in FP16: set quantize.sensitivity=always and raise quantize.max_kept. Or, where "
            "agreement and accuracy suffice, lower the threshold: verify.thresholds.int8.sqnr_db.",
            settles=False,
        )
    ]


def _first_layer(read: Callable[[], onnx.ModelProto] | None) -> str:
    """Return the Keras layer of the first weights of an ONNX file; "" where there are none."""
    if read is None:
        return ""
    from export.onnx_passes.layer_names import keras_layer

    nodes = read().graph.node
    return next((keras_layer(node.name) for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")), "")


def _located(explanation: Explanation, read: Callable[[], onnx.ModelProto] | None, pixels: np.ndarray) -> Explanation:
    """Return an explanation of values that are not finite with the layer where they arise."""
    if explanation.cause != "not finite" or read is None:
        return explanation
    from pipeline.verification.explain.half import first_not_finite

    try:
        layer = first_not_finite(read(), pixels)
    except Exception as error:  # of ONNX Runtime, which has no public base: the cause stands without its layer
        log.debug("where values stop being finite could not be computed: %s", error)
        return explanation
    layer = "" if layer in _NO_LAYERS else layer
    where = f" The first such values are behind layer {layer!r}." if layer else ""
    return explanation.changed(layer=layer, evidence=f"{explanation.evidence}{where}")


def _settled(found: Sequence[Explanation]) -> bool:
    return any(explanation.settles for explanation in found)


def _predict(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from inputs of the network to logits."""
    return lambda inputs: np.concatenate(
        [np.asarray(model.predict_on_batch(inputs[i : i + 16]), np.float32) for i in range(0, len(inputs), 16)]
    )


def _unknown(hop: Hop) -> Explanation:
    if not hop.compared:
        return Explanation("unknown", "The file gave no answers, so there is nothing to compare.", hop.why, f"{AGAIN}.")
    return Explanation(
        "unknown",
        "None of the causes that were tried explains the difference.",
        hop.why,
        COMPARE_LAYERS,
    )
