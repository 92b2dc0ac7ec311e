"""What the verify stage finds out beside the verdict: why comparisons failed, and how image files are decoded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from export.errors import DataError
from pipeline.artifacts.diagnosis import Decoding, Hint
from pipeline.artifacts.equalization import read_factors
from pipeline.artifacts.parity_report import FAIL, ParityReport
from pipeline.artifacts.paths import EQUALIZATION, KERAS, Artifacts
from pipeline.models.model_card import ModelCard
from pipeline.runners.keras import load_logits_model
from pipeline.verification.culprits import culprits
from pipeline.verification.explain import explain
from pipeline.verification.explain.case import Case
from pipeline.verification.parity import Answer, Candidate, Reference

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Compared:
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


def explain_failures(
    compared: Compared, artifacts: Artifacts, allow: Sequence[str], decoding: Sequence[Decoding] = ()
) -> tuple[Hint, ...]:
    """Return the causes of the failed comparisons; none after another verdict. It hides no verdict by an error.

    Args:
        compared: The verdict.
        artifacts: The recipe's.
        allow: Names of parts of the model that may run code.
        decoding: How the test images are decoded. Defaults to (): unknown.
    """
    if compared.parity.verdict != FAIL:
        return ()
    factors: Mapping[str, np.ndarray] = {}
    try:
        factors = read_factors(artifacts.path(EQUALIZATION)) if artifacts.has(EQUALIZATION) else {}
    except DataError as error:
        log.warning("%s", error)
    case = Case(
        candidates=compared.candidates,
        answers=compared.answers,
        reference=compared.reference,
        card=compared.card,
        paths={candidate.name: artifacts.path(candidate.name) for candidate in compared.candidates},
        load=partial(load_logits_model, artifacts.path(KERAS), compared.card.output, allow),
        factors=factors,
        decoding=decoding,
    )
    return explain(culprits(compared.parity.hops), case)
