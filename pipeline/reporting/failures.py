"""The report's next step after a failure: the change that may fix it according to the records, else what was reached.

Advice that did not help is not repeated: a change that the recipe has already, or that cannot help according to
``calibration.json`` and ``sensitivity.csv``, is not suggested.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from export.errors import ProjectError
from export.int8.report import CalibrationReport
from export.tensorrt.sidecar import read_sidecar
from export.words import count, listed, sentence
from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.manifest import Manifest, matches_manifest
from pipeline.artifacts.parity_report import (
    CONSISTENCY,
    FAIL,
    NO_LOGITS,
    NOT_RUN,
    PASS,
    STEP,
    TOP_K,
    VALUES_OF,
    Hop,
    ParityReport,
    run_name,
)
from pipeline.artifacts.paths import CARD, KERAS, Artifacts
from pipeline.artifacts.stage_files import read_calibration, read_rows
from pipeline.models.model_card import ModelCard
from pipeline.quantization.advice import turned_off
from pipeline.recipe.schema import Recipe, Thresholds
from pipeline.reporting.headline import NOT_FINITE, accuracy_in_words, missed, short_name
from pipeline.reporting.sections import make, make_with
from pipeline.reporting.validity import digest_now
from pipeline.terminal.command_line import Invocation

ENGINE_CHECK = ("python", "-m", "pipeline", "engine", "check")
FASTEST_FIRST = ("int8", "fp16", "fp32")
AT_MOST = ("relative_error", "accuracy_drop")  # upper limits; the other thresholds are lower limits
SENSITIVITY = "quantize/sensitivity.csv"
COLUMNS = ("op", "noise", "kept")  # columns of sensitivity.csv
LEAST_SHARE = 0.01  # of the noise: the quantize stage keeps no layer with less in FP16
FAR_DB = 6.0  # the noises of layers add up only approximately: an estimate that misses by less is tried


@dataclass(frozen=True)
class Step:
    """What to do next.

    Attributes:
        title: in the imperative.
        line: the command; "": there is none.
        more: explanation, as sentences.
        may_fix: whether it may change the verdict.
    """

    title: str
    line: str = ""
    more: str = ""
    may_fix: bool = True


@dataclass(frozen=True)
class Situation:
    """What the advice depends on.

    Attributes:
        artifacts: of the recipe.
        recipe: as it is now.
        invocation: how the command was called.
        card: of the model.
        parity: the verdict.
        verify: the record of the verify stage; None: it is missing or damaged.
        hints: what explains the verdict. Defaults to none.
    """

    artifacts: Artifacts
    recipe: Recipe
    invocation: Invocation
    card: ModelCard
    parity: ParityReport
    verify: Manifest | None
    hints: tuple[Hint, ...] = ()

    @property
    def calibration(self) -> CalibrationReport:
        """The record of the quantize stage.

        Raises:
            ProjectError: it is missing or damaged.
        """
        return read_calibration(self.artifacts.path("quantize/calibration.json"))

    def changed(self, *overrides: str) -> str:
        """Return the command that runs the whole chain with other recipe values."""
        return make_with(self.invocation, overrides, "run", self.verify)


def after_failure(situation: Situation) -> Step:
    """Choose the step after a verdict with a failed comparison.

    An error in FP32 is in every file made from it, so FP32 comes first; else a step that may fix the failure does.

    Raises:
        ProjectError: a record of the quantize stage is missing or damaged.
    """
    failed: dict[str, Hop] = {}
    for hop in situation.parity.hops:
        if hop.verdict == FAIL:
            failed.setdefault(hop.run_name, hop)
    # An engine, or a run on CUDA, fails together with its graph.
    graphs = {hop.precision for hop in failed.values() if hop.backend == "onnxruntime"}
    hops = [hop for hop in failed.values() if hop.backend == "onnxruntime" or hop.precision not in graphs]
    first = [hop for hop in hops if hop.precision == "fp32" and hop.backend != "tensorrt"] or hops
    steps = [_after(situation, hop) for hop in first]
    return next((step for step in steps if step and step.may_fix), None) or steps[0] or _best_use(situation, first)


def _after(situation: Situation, hop: Hop) -> Step | None:
    """What may fix a failed comparison, or tells more about it; None: nothing does."""
    why = sentence(f"{short_name(hop.run_name)}: {hop.why}")
    recipe = situation.recipe
    if hop.kind == TOP_K and recipe.export.top_k:
        return Step("Let the host pick the best classes", situation.changed("export.top_k=0"), why)
    if hop.backend == "tensorrt":
        return _engine(situation, hop, why)
    if hop.candidate == CARD:
        return Step("Have image files decoded as the model's own were", more=why, may_fix=False)
    if hop.reference.startswith(VALUES_OF):
        return Step("Quantize again", f"{situation.invocation.command('quantize', 'python')} --force", why)
    if hop.kind == CONSISTENCY:
        more = f"{why} An answer must not depend on the other images of its batch."
        return Step(f"Do not serve {short_name(hop.run_name)} in batches", more=more, may_fix=False)
    if not hop.compared:
        return _not_compared(situation, hop, why)
    if hop.precision != "fp32":
        return _more_layers(situation, hop, why)
    fixed_limit = isinstance(recipe.verify.thresholds.fp32.relative_error, float)
    if (
        fixed_limit
        and hop.finite
        and {threshold.key for threshold in missed(hop, situation.parity)} <= {"relative_error"}
    ):
        line = situation.changed("verify.thresholds.fp32.relative_error=auto")
        return Step("Derive the limit from how much rounding changes this model's logits", line, why)
    return None


def _engine(situation: Situation, hop: Hop, why: str) -> Step:
    artifacts, digest = situation.artifacts, digest_now(situation.artifacts, hop.candidate)
    try:
        intact = digest is not None and read_sidecar(artifacts.path(hop.candidate)).plan_sha256 == digest
    except (ProjectError, OSError):
        intact = False
    if not intact:
        line = f"{situation.invocation.command('build', 'python')} --force"
        return Step("Build it again: it is not the engine of its sidecar", line, f"{why} Then verify it: run.")
    served = _served(situation)
    more = f"{why} If it fits this machine and has the requested layers, the engine itself fails"
    more += f": serve {served}, which passed." if served else "."
    line = shlex.join([*ENGINE_CHECK, f"{artifacts}/{hop.candidate}"])
    return Step(f"Check what was built for {short_name(hop.candidate)}", line, more, may_fix=False)


def _not_compared(situation: Situation, hop: Hop, why: str) -> Step:
    """A file without outputs: it was damaged before it was judged, or nothing here runs it."""
    artifacts = situation.artifacts
    if NO_LOGITS in hop.why:
        line = shlex.join(["python", "-m", "pipeline", "inspect", f"{artifacts}/{KERAS}"])
        return Step("Check the Keras model itself", line, f"{why} It gives {NOT_FINITE}.", may_fix=False)
    if digest_now(artifacts, hop.candidate) is None or not matches_manifest(artifacts, hop.candidate):
        line = make(situation.invocation, "run", situation.verify)
        return Step("Make the file again", line, f"{why} It is not the one that its stage wrote.")
    more = f"{why} The file is as the {hop.candidate.partition('/')[0]} stage wrote it, so check what runs it."
    return Step("Check this machine", "python -m pipeline doctor", more, may_fix=False)


def _more_layers(situation: Situation, hop: Hop, why: str) -> Step | None:
    """What the search left out, then layers in a higher precision, where this may help according to the records."""
    settings = situation.recipe.quantize
    report = situation.calibration
    int8 = hop.precision == "int8"
    if report.budget_met if int8 else report.fp16.budget_met:
        return None
    if int8 and (off := turned_off(settings)):
        title = f"Let the quantize stage try all that brings INT8 closer: {listed(off, most=len(off))}"
        return Step(title, situation.changed(*off), f"{why} All layers that are INT8 stay so.")
    if settings.sensitivity == "never":
        title = "Measure the sensitivity of each layer, so that the most sensitive can be kept"
        return Step(title, situation.changed("quantize.sensitivity=auto"), why)
    convolutions = report.convolutions
    if int8:
        key, allowed, higher = "quantize.max_kept", settings.max_kept, "FP16"
        may_help = allowed < 1 and _may_reach(situation, hop, report)
    else:
        key, allowed, higher = "quantize.max_kept_fp32", settings.max_kept_fp32, "FP32"
        # Where fewer are kept than may be, the others cost nothing, or keeping them did not help.
        may_help = allowed < 1 and len(report.fp16.kept) >= int(allowed * convolutions)
    if not may_help:
        return None
    limit = f"now {int(allowed * convolutions)} of {convolutions} convolutions may"
    more = f"{why} The fewest that meet it stay in {higher}; {limit}. Section Sensitivity to INT8 has each."
    return Step(f"Keep more layers in {higher}", situation.changed(f"{key}=1"), more)


def _may_reach(situation: Situation, hop: Hop, report: CalibrationReport) -> bool:
    """Whether INT8 could meet its threshold if every convolution with noticeable noise were kept in FP16."""
    best = _best_sqnr(situation, report)
    limit = situation.parity.thresholds.get(hop.precision, Thresholds()).sqnr_db
    return best is not None and (limit is None or best >= limit - FAR_DB)


def _best_sqnr(situation: Situation, report: CalibrationReport) -> float | None:
    """Estimate the SQNR, in dB, with all convolutions in FP16 that may be; None: none is left to keep.

    The noise of the whole model falls by the share that these have in the noise of all INT8 layers.
    """
    if not situation.artifacts.has(SENSITIVITY):
        return None
    noises = [
        (row.cells["op"], row.number("noise", finite=False, low=0.0), row.cells["kept"])
        for row in read_rows(situation.artifacts.path(SENSITIVITY), COLUMNS, "Run the quantize stage again.")
    ]
    total = sum(noise for _, noise, kept in noises if kept != "fp32")
    int8 = [(op, noise) for op, noise, kept in noises if kept == "int8"]
    removable = [noise for op, noise in int8 if op == "Conv" and 0 < noise >= LEAST_SHARE * total]
    if not removable:
        return None
    now = (report.mixed or report.all_int8).sqnr_db
    rest = sum(noise for _, noise in int8) - sum(removable)
    if now is None or not math.isfinite(total) or rest <= 0:
        return math.inf
    return now + 10 * math.log10(sum(noise for _, noise in int8) / rest)


# --- where nothing fixes it ---


def _best_use(situation: Situation, hops: Sequence[Hop]) -> Step:
    """What the files reached, and what to do with them."""
    results = " ".join(_reached(situation, hop) for hop in hops)
    lower = _reachable(situation, hops)
    if served := _served(situation):
        keys = listed(f"{key} (now {attrgetter(key)(situation.recipe)})" for key in lower)
        more = f"{results} If what was reached is enough for you, set {keys}." if lower else results
        line = f"{situation.invocation.command('infer', 'python')} photos/ -o predictions.csv"
        return Step(f"Serve {served}, which passed", line, more, may_fix=False)
    if lower:
        line = situation.changed(*(f"{key}={value}" for key, value in lower.items()))
        more = f"{results} No file passed. If that is not enough for you, the model cannot be served as it is."
        return Step("Set the thresholds to what was reached, if that is enough for you", line, more, may_fix=False)
    more = f"{results} Section Parity shows which step loses it."
    return Step("No file of this model can be served", more=more, may_fix=False)


def _reachable(situation: Situation, hops: Sequence[Hop]) -> dict[str, str]:
    """The thresholds that all these comparisons meet, by recipe key."""
    by_key: dict[str, list[str]] = {}
    for hop in hops:
        for threshold in missed(hop, situation.parity):
            by_key.setdefault(f"verify.thresholds.{hop.precision}.{threshold.key}", []).append(threshold.value)
    loosest = {True: max, False: min}
    return {key: loosest[key.endswith(AT_MOST)](values, key=float) for key, values in by_key.items()}


def _reached(situation: Situation, hop: Hop) -> str:
    """One file: what it does not reach, and what it does."""
    name = run_name(hop.precision.upper(), hop.backend)
    thresholds = missed(hop, situation.parity)
    if hop.compared and not hop.finite:
        return f"{name} gives {NOT_FINITE} on this model.{_why_no_more(situation, hop)}"
    if not thresholds:
        return sentence(f"{short_name(hop.run_name)}: {hop.why}")
    against = f", against {hop.reference}" if hop.kind == STEP else ""
    values = listed(
        [accuracy_in_words(hop), *(threshold.words for threshold in thresholds if threshold.key in AT_MOST)]
    )
    return (
        f"{name} does not reach {listed(threshold.limit for threshold in thresholds)} on this model. On "
        f"{count(hop.images, 'image')}{against}: {values}.{_why_no_more(situation, hop)}"
    )


def _why_no_more(situation: Situation, hop: Hop) -> str:
    """Why other settings of the quantize stage would not help, according to its records."""
    if hop.precision == "fp32":
        return ""
    report = situation.calibration
    if report.budget_met if hop.precision == "int8" else report.fp16.budget_met:
        return (
            f" It was met on {count(report.held_out_images, 'held-out image')}, so keeping more layers changes nothing;"
            f" more calibration images (here {report.held_out_images + report.scale_images:,}) bring the two closer."
        )
    if hop.precision == "fp16":
        return f" {count(len(report.fp16.kept), 'layer is', 'layers are')} in FP32 already."
    words = f" {report.int8_convolutions:,} of {count(report.convolutions, 'convolution')} compute in INT8"
    words += ", so little of INT8's speed is left." if 2 * report.int8_convolutions < report.convolutions else "."
    best = _best_sqnr(situation, report)
    if best is not None and math.isfinite(best) and situation.recipe.quantize.max_kept < 1:
        words += (
            f" With all sensitive layers in FP16 about {best:.0f} dB would be reached (section Sensitivity to INT8)."
        )
    return words


def _served(situation: Situation) -> str:
    """The precisions of which all runs passed, the fastest first, in words."""
    verdicts = {
        precision: {hop.verdict for hop in situation.parity.hops if hop.precision == precision}
        for precision in FASTEST_FIRST
    }
    return " or ".join(name.upper() for name, of_runs in verdicts.items() if of_runs - {NOT_RUN} == {PASS})
