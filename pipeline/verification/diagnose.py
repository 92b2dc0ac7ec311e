"""What the verify stage finds out beside the verdict: why comparisons failed, and how image files are decoded."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from export.errors import DataError, ProjectError
from pipeline.artifacts.diagnosis import Decoding, Hint
from pipeline.artifacts.parity_report import FAIL, ParityReport, overall_verdict
from pipeline.artifacts.paths import CARD, KERAS, TENSORS, Artifacts
from pipeline.artifacts.tensor_changes import TensorChange, read_changes
from pipeline.data.sample import Sample
from pipeline.models.model_card import ModelCard
from pipeline.runners.keras import load_logits_model
from pipeline.terminal.console import start_tensorflow
from pipeline.verification.checks.decoding import compare_decoding, decoding_hop, explain_decoding
from pipeline.verification.culprits import culprits
from pipeline.verification.explain.case import Case
from pipeline.verification.explain.causes import explain
from pipeline.verification.parity import Answer, Candidate, Reference

LOADED_IMAGES = 24  # test images that are loaded in both ways

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Judged:
    """A verdict, and what it was given on.

    Attributes:
        parity: The verdict.
        candidates: What was judged.
        answers: What they gave, by run_name.
        reference: What they were judged by.
        card: The model's card.
    """

    parity: ParityReport
    candidates: Sequence[Candidate]
    answers: Mapping[str, Answer]
    reference: Reference
    card: ModelCard


def compare_loading(
    samples: Sequence[Sample], card: ModelCard, artifacts: Artifacts, allow: Sequence[str]
) -> tuple[Decoding, ...]:
    """Compare how this project and Keras load some test images, as many of each file type as the number allows.

    Args:
        samples: The test images.
        card: The model's card.
        artifacts: The recipe's.
        allow: Names of parts of the model that may run code.

    Returns:
        tuple[Decoding, ...]: None where Keras is not here, or no test image is a file.
    """
    taken: Counter[str] = Counter()
    ranked = []
    for sample in samples:
        if sample.path is not None:
            taken[kind := sample.path.suffix.lower()] += 1
            ranked.append((taken[kind], sample))
    if not ranked or not all(map(importlib.util.find_spec, ("keras", "tensorflow"))):
        return ()
    start_tensorflow()

    @cache
    def model() -> Any:
        try:
            return load_logits_model(artifacts.path(KERAS), card.output, allow)
        except ProjectError as error:  # its logits may be of a former run; pixels are compared all the same
            log.warning("files are compared with Keras' loading by their pixels alone: %s", error)
            return None

    def logits_of(pixels: np.ndarray) -> np.ndarray | None:
        network = model()
        return None if network is None else np.asarray(network.predict_on_batch(card.preprocessing.apply(pixels)))

    ranked.sort(key=lambda pair: pair[0])
    return compare_decoding([sample for _, sample in ranked[:LOADED_IMAGES]], card, logits_of)


def with_decoding(parity: ParityReport, decoding: Sequence[Decoding]) -> ParityReport:
    """Return the verdict with the hop of the files' decoding, where there is one."""
    if (hop := decoding_hop(decoding)) is None:
        return parity
    hops = (*parity.hops, hop)
    return replace(parity, verdict=overall_verdict(hops), hops=hops)


def explain_failures(
    compared: Judged,
    artifacts: Artifacts,
    allow: Sequence[str],
    decoding: Sequence[Decoding] = (),
    load: Callable[[], Any] | None = None,
) -> tuple[Hint, ...]:
    """Return the causes of the failed comparisons; none after another verdict. It hides no verdict by an error.

    Args:
        compared: The verdict.
        artifacts: The recipe's.
        allow: Names of parts of the model that may run code.
        decoding: How the test images are decoded. Defaults to (): unknown.
        load: Gives Keras' model with logits as its output. Defaults to None: it is loaded from its file.
    """
    if compared.parity.verdict != FAIL:
        return ()
    changes: Mapping[str, TensorChange] = {}
    try:
        changes = read_changes(artifacts.path(TENSORS)) if artifacts.has(TENSORS) else {}
    except DataError as error:
        log.warning("%s", error)
    case = Case(
        candidates=compared.candidates,
        answers=compared.answers,
        reference=compared.reference,
        card=compared.card,
        paths={candidate.name: artifacts.path(candidate.name) for candidate in compared.candidates},
        load=load or partial(load_logits_model, artifacts.path(KERAS), compared.card.output, allow),
        changes=changes,
    )
    at_fault = [hop for hop in culprits(compared.parity.hops) if hop.candidate != CARD]
    return (*explain(at_fault, case), *explain_decoding(decoding))
