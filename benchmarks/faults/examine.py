"""Verify artifacts with a planted fault as the verify stage does, and hold what it says against what was planted."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.faults.image_kinds import write_image_kinds
from benchmarks.faults.planted import Planted
from benchmarks.faults.specimen import Specimen
from export.metrics.distances import read_noise
from pipeline.artifacts.archives import parse_meta, read_arrays
from pipeline.artifacts.diagnosis import Decoding, Hint
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.parity_report import Hop, Overall
from pipeline.artifacts.paths import CARD, KERAS, ONNX, REFERENCE, Artifacts
from pipeline.data.sample import Sample
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.recipe.schema import VerifyThresholds
from pipeline.runners.keras import load_logits_model
from pipeline.verification.checks.decoding import compare_decoding
from pipeline.verification.culprits import culprits
from pipeline.verification.diagnose import Judged, explain_failures, with_decoding
from pipeline.verification.parity import Answer, Candidate, Reference, judge
from pipeline.verification.verify import list_candidates, run_all

if TYPE_CHECKING:
    import keras

BATCH = 16


@dataclass(frozen=True)
class Examination:
    """What verification says of some artifacts.

    Attributes:
        verdict: over all comparisons.
        hops: all comparisons.
        at_fault: those at fault.
        hints: why.
        seconds: time that it took.
    """

    verdict: Overall
    hops: tuple[Hop, ...]
    at_fault: tuple[Hop, ...]
    hints: tuple[Hint, ...]
    seconds: float

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs at fault."""
        return tuple(dict.fromkeys(hop.run_name for hop in self.at_fault))

    def catches(self, planted: Planted) -> bool:
        """Whether the run with the fault fails."""
        return any(hop.run_name == (planted.run or CARD) and hop.verdict == "fail" for hop in self.hops)

    def names_hop(self, planted: Planted) -> bool:
        """Whether the run with the fault, and no other, is at fault."""
        return self.runs == (planted.run or CARD,)

    def hint(self, planted: Planted) -> Hint | None:
        """Return the first hint on the run with the fault; None if there is none."""
        return next((hint for hint in self.hints if hint.run == (planted.run or CARD)), None)

    def names_cause(self, planted: Planted) -> bool:
        """Whether the first hint has the cause."""
        hint = self.hint(planted)
        return hint is not None and hint.cause in planted.change.causes

    def names_layer(self, planted: Planted) -> bool | None:
        """Whether the first hint has the layer; None where the fault is in no layer."""
        hint = self.hint(planted)
        return (hint is not None and hint.layer in planted.change.layers) if planted.change.layers else None


@dataclass
class Examiner:
    """Verifies copies of one recipe's artifacts; answers of files that did not change are kept.

    Attributes:
        thresholds: of the recipe.
        answers: by run, sha256 of the file and that of the FP32 file.
        model: Keras' model with logits as its output, once it was needed.
    """

    thresholds: VerifyThresholds = field(default_factory=VerifyThresholds)
    answers: dict[tuple[str, str, str], Answer] = field(default_factory=dict)
    model: keras.Model | None = None

    def examine(self, specimen: Specimen, planted: Planted | None, *, explained: bool = True) -> Examination:
        """Verify artifacts.

        Args:
            specimen: the artifacts.
            planted: the fault in them; None: there is none.
            explained: whether hints are computed. Defaults to True.
        """
        start = time.monotonic()
        reference, artifacts = _reference(specimen), Artifacts(specimen.folder)
        candidates = list_candidates(artifacts, RuntimeOptions())
        if planted is not None:
            candidates = [replace(c, open=planted.runners.get(c.run_name, c.open)) for c in candidates]
        answers = self._run(candidates, reference, specimen, planted)
        decodings = self._decode(specimen, planted)
        parity = with_decoding(judge(candidates, answers, reference, self.thresholds), decodings)
        at_fault = culprits(parity.hops)
        hints: tuple[Hint, ...] = ()
        if explained:
            compared = Judged(parity, candidates, answers, reference, specimen.card)
            hints = explain_failures(compared, artifacts, (), decodings, lambda: self._keras(specimen))
        return Examination(parity.verdict, parity.hops, tuple(at_fault), hints, time.monotonic() - start)

    def _run(
        self, candidates: Sequence[Candidate], reference: Reference, specimen: Specimen, planted: Planted | None
    ) -> dict[str, Answer]:
        replaced = planted.runners if planted is not None else {}
        # An answer holds the file's values against those of the FP32 file, so both files are its key.
        origin = next(c.sha256 for c in candidates if c.name == ONNX["fp32"])
        keys = {c.run_name: (c.run_name, c.sha256, origin) for c in candidates if not c.why_not}
        keys = {run: key for run, key in keys.items() if run not in replaced}
        known = {run: self.answers[key] for run, key in keys.items() if key in self.answers}
        new = [c for c in candidates if c.run_name not in known]
        answers = known | run_all(new, reference, BATCH, specimen.card.check_runner)
        self.answers.update({key: answers[run] for run, key in keys.items()})
        return answers

    def _keras(self, specimen: Specimen) -> keras.Model:
        if self.model is None:
            self.model = load_logits_model(specimen.path(KERAS), specimen.card.output)
        return self.model

    def _decode(self, specimen: Specimen, planted: Planted | None) -> tuple[Decoding, ...]:
        card, model = specimen.card, self._keras(specimen)
        if planted is not None and planted.decode is not None:
            card = replace(card, decode=planted.decode)

        def logits_of(pixels: np.ndarray) -> np.ndarray:
            return np.asarray(model.predict_on_batch(card.preprocessing.apply(pixels)))

        with tempfile.TemporaryDirectory() as folder:
            files = write_image_kinds(Path(folder))
            samples = [Sample(kind, 0, "", partial(Path, path), path) for kind, path in files.items()]
            return compare_decoding(samples, card, logits_of)


def _reference(specimen: Specimen) -> Reference:
    meta = parse_meta(read_arrays(specimen.path(REFERENCE), ("meta",))["meta"])
    pixels, labels, logits = (specimen.reference[name] for name in ("pixels", "labels", "logits"))
    return Reference(KERAS, sha256_file(specimen.path(KERAS)), pixels, labels, logits, read_noise(meta))
