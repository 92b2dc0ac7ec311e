"""Which of the failed comparisons is at fault, and which failed only because the file before it did."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.artifacts.parity_report import FAIL, FROM_KERAS, NO_LOGITS, STEP, VALUES_OF, Hop


def culprits(hops: Sequence[Hop]) -> list[Hop]:
    """Return the hops at fault, at most one of a kind and run.

    A run that fails against Keras is at fault itself if the file that it was made from passes against Keras, or if it
    also fails against that file. Then the hop is the step, which names the two files between which the fault lies, if
    that fails too; else the hop from Keras. If its source fails against Keras and the step does not, or if both end in
    the same error, the fault is the source's. A run that does not fail against Keras is at fault only for a step from a
    source that does not either. What a run does to itself, its best classes and its consistency, is its source's fault
    if the source fails likewise. Values that do not
    follow from the file it was made from are its own, whatever that file is, and not those of its engines.

    Args:
        hops: Of a verdict, in their order.
    """
    from_keras = {hop.run_name: hop for hop in hops if hop.kind == FROM_KERAS}
    steps = {hop.run_name: hop for hop in hops if hop.kind == STEP}
    failed = {(hop.run_name, hop.kind) for hop in hops if hop.verdict == FAIL}
    found = []
    for hop in hops:
        if hop.verdict != FAIL:
            continue
        step = steps.get(hop.run_name)
        source = from_keras.get(step.reference) if step is not None else None
        source_failed = source is not None and source.verdict == FAIL
        step_failed = step is not None and step.verdict == FAIL and not _inherited(step, source)
        if hop.kind == FROM_KERAS:
            at_fault = not step_failed and not source_failed
        elif hop.reference.startswith(VALUES_OF):
            at_fault = hop.backend == "onnxruntime"  # on others the same file's values are
        elif hop.kind == STEP:
            at_fault = step_failed and ((hop.run_name, FROM_KERAS) in failed or not source_failed)
        else:
            at_fault = step is None or (step.reference, hop.kind) not in failed
        if at_fault:
            found.append(hop)
    return found


def _inherited(step: Hop, source: Hop | None) -> bool:
    """Whether a step says nothing, as its reference has no usable logits, or both files end in the same error."""
    if step.why.endswith(NO_LOGITS):
        return True
    own, others = (hop.why.partition("Received: ")[2] if hop is not None else "" for hop in (step, source))
    return not step.compared and bool(own) and own == others
