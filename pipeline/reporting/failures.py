"""What a reader does after a failure: the one change that the records say may mend it, else what the files reached.

Advice that was followed and brought nothing is not given again: a change that is in force already, or that
``calibration.json`` and ``sensitivity.csv`` say cannot help, makes way for the truth.
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
from pipeline.artifacts.manifest import Manifest, as_recorded
from pipeline.artifacts.parity_report import FAIL, NO_LOGITS, NOT_RUN, PASS, STEP, TOP_K, Hop, ParityReport, run_name
from pipeline.artifacts.paths import KERAS, Artifacts
from pipeline.artifacts.stage_files import read_calibration, read_rows
from pipeline.models.model_card import ModelCard
from pipeline.recipe.schema import Recipe, Thresholds
from pipeline.reporting.headline import UNUSABLE, missed, reached, short_name
from pipeline.reporting.sections import make, make_with
from pipeline.reporting.validity import digest_now
from pipeline.terminal.command_line import Invocation

ENGINE_CHECK = ("python", "-m", "pipeline", "engine", "check")
FASTEST_FIRST = ("int8", "fp16", "fp32")
AT_MOST = ("relative_error", "accuracy_drop")  # the other thresholds say what is needed at least
SENSITIVITY = "quantize/sensitivity.csv"
COSTS = ("op", "noise", "kept")  # columns of sensitivity.csv
WORTH = 0.01  # share of the noise below which the quantize stage keeps no layer in FP16
FAR_DB = 6.0  # noises of layers add up only about: an estimate that misses by less is tried


@dataclass(frozen=True)
class Step:
    """What to do next.

    Attributes:
        title: in the imperative.
        line: the command; "": none does it.
        more: sentences.
        mends: whether it may turn the verdict.
    """

    title: str
    line: str = ""
    more: str = ""
    mends: bool = True


@dataclass(frozen=True)
class Situation:
    """What the advice depends on."""

    artifacts: Artifacts
    recipe: Recipe
    invocation: Invocation
    card: ModelCard
    parity: ParityReport
    verify: Manifest | None

    @property
    def calibration(self) -> CalibrationReport:
        """What the quantize stage recorded.

        Raises:
            ProjectError: it is missing or damaged.
        """
        return read_calibration(self.artifacts.path("quantize/calibration.json"))

    def changed(self, *overrides: str) -> str:
        """The whole chain with other values."""
        return make_with(self.invocation, overrides, "run", self.verify)


def after_failure(situation: Situation) -> Step:
    """The step after a verdict of which some comparison failed.

    What is wrong with FP32 is in all that is made from it, so it comes first; else what can be mended does.

    Raises:
        ProjectError: a record of the quantize stage is missing or damaged.
    """
    failed: dict[str, Hop] = {}
    for hop in situation.parity.hops:
        if hop.verdict == FAIL:
            failed.setdefault(hop.run_name, hop)
    # What runs on a GPU fails with its graph.
    graphs = {hop.precision for hop in failed.values() if hop.backend == "onnxruntime"}
    hops = [hop for hop in failed.values() if hop.backend == "onnxruntime" or hop.precision not in graphs]
    first = [hop for hop in hops if hop.precision == "fp32" and hop.backend != "tensorrt"] or hops
    steps = [_after(situation, hop) for hop in first]
    return next((step for step in steps if step and step.mends), None) or steps[0] or _truth(situation, first)


def _after(situation: Situation, hop: Hop) -> Step | None:
    """What may mend a comparison, or tells more of it; None: nothing does."""
    said = sentence(f"{short_name(hop.run_name)}: {hop.why}")
    recipe = situation.recipe
    if hop.kind == TOP_K and recipe.export.top_k:
        return Step("Let the host pick the best classes", situation.changed("export.top_k=0"), said)
    if hop.backend == "tensorrt":
        return _engine(situation, hop, said)
    if not hop.compared:
        return _not_compared(situation, hop, said)
    if hop.precision == "fp32":
        asked = recipe.verify.thresholds.fp32.relative_error
        if isinstance(asked, float) and hop.finite and _only_relative(situation, hop):
            line = situation.changed("verify.thresholds.fp32.relative_error=auto")
            return Step("Let the model say how much rounding moves it", line, said)
        return None
    return _more_layers(situation, hop, said)


def _only_relative(situation: Situation, hop: Hop) -> bool:
    return {one.key for one in missed(hop, situation.parity)} <= {"relative_error"}


def _engine(situation: Situation, hop: Hop, said: str) -> Step:
    artifacts, digest = situation.artifacts, digest_now(situation.artifacts, hop.candidate)
    try:
        whole = digest is not None and read_sidecar(artifacts.path(hop.candidate)).plan_sha256 == digest
    except (ProjectError, OSError):
        whole = False
    name = short_name(hop.candidate)
    if not whole:
        line = f"{situation.invocation.command('build', 'python')} --force"
        return Step("Build it anew, it is not what its sidecar says", line, f"{said} Then verify it: run.")
    served = _served(situation)
    more = f"{said} If it fits this machine and was built of the layers that were asked for, it fails by itself"
    more += f": serve {served}, which passed." if served else "."
    line = shlex.join([*ENGINE_CHECK, f"{artifacts}/{hop.candidate}"])
    return Step(f"Look at what was built for {name}", line, more, mends=False)


def _not_compared(situation: Situation, hop: Hop, said: str) -> Step:
    """A file that gave no answers: it was damaged before it was judged, or nothing here runs it."""
    artifacts = situation.artifacts
    if NO_LOGITS in hop.why:
        line = shlex.join(["python", "-m", "pipeline", "inspect", f"{artifacts}/{KERAS}"])
        return Step("Look at the Keras model itself", line, f"{said} It gives {UNUSABLE}.", mends=False)
    if digest_now(artifacts, hop.candidate) is None or not as_recorded(artifacts, hop.candidate):
        return Step(
            "Make it anew",
            make(situation.invocation, "run", situation.verify),
            f"{said} It isn't what its stage wrote.",
        )
    more = f"{said} The file is as the {hop.candidate.partition('/')[0]} stage wrote it, so look at what runs it."
    return Step("See what this machine has", "python -m pipeline doctor", more, mends=False)


def _more_layers(situation: Situation, hop: Hop, said: str) -> Step | None:
    """Layers to take back into more precision, where the records say that this may help."""
    settings = situation.recipe.quantize
    report = situation.calibration
    int8 = hop.precision == "int8"
    if report.budget_met if int8 else report.fp16.budget_met:
        return None
    if settings.sensitivity == "never":
        title = "Measure what each layer costs, so that the dearest can be kept"
        return Step(title, situation.changed("quantize.sensitivity=auto"), said)
    convolutions = report.convolutions
    if int8:
        if settings.max_kept >= 1 or not _may_reach(situation, hop, report):
            return None
        title, key, now, more = "Keep more layers in FP16", "quantize.max_kept", settings.max_kept, "FP16"
    else:
        allowed = int(settings.max_kept_fp32 * convolutions)
        if settings.max_kept_fp32 >= 1 or len(report.fp16.kept) < allowed:
            return None  # fewer are kept than may be: what is left costs nothing, or keeping it brought nothing
        title, key, now, more = "Keep more layers in FP32", "quantize.max_kept_fp32", settings.max_kept_fp32, "FP32"
    few = f"The fewest that meet it stay in {more}; now {int(now * convolutions)} of {convolutions} convolutions may."
    return Step(title, situation.changed(f"{key}=1"), f"{said} {few} Section Layers says what each costs.")


def _may_reach(situation: Situation, hop: Hop, report: CalibrationReport) -> bool:
    """Whether keeping every convolution that costs anything could meet what is asked of INT8."""
    best = _best_sqnr(situation, report)
    wanted = situation.parity.thresholds.get(hop.precision, Thresholds()).sqnr_db
    return best is not None and (wanted is None or best >= wanted - FAR_DB)


def _best_sqnr(situation: Situation, report: CalibrationReport) -> float | None:
    """About the SQNR, in dB, with all convolutions in FP16 that may be; None: none is left to keep.

    The noise of the whole model falls by the share that these have in the noise of what is INT8 now.
    """
    if not situation.artifacts.has(SENSITIVITY):
        return None
    costs = []
    for row in read_rows(situation.artifacts.path(SENSITIVITY), COSTS, "Run the quantize stage again."):
        costs.append((row.cells["op"], row.number("noise", finite=False, low=0.0), row.cells["kept"]))
    whole = sum(noise for _, noise, kept in costs if kept != "fp32")
    now = [(op, noise) for op, noise, kept in costs if kept == "int8"]
    left = [noise for op, noise in now if op == "Conv" and 0 < noise >= WORTH * whole]
    if not left:
        return None
    found = report.mixed or report.all_int8
    rest = sum(noise for _, noise in now) - sum(left)
    if found.sqnr_db is None or not math.isfinite(whole) or rest <= 0:
        return math.inf
    return found.sqnr_db + 10 * math.log10(sum(noise for _, noise in now) / rest)


# --- where nothing mends it ---


def _truth(situation: Situation, hops: Sequence[Hop]) -> Step:
    """What the files reached, and what to do with that."""
    said = " ".join(_reached(situation, hop) for hop in hops)
    lower = _reachable(situation, hops)
    if served := _served(situation):
        keys = listed(f"{key} (now {attrgetter(key)(situation.recipe)})" for key in lower)
        more = f"{said} If what was reached is enough for you, say so in {keys}." if lower else said
        line = f"{situation.invocation.command('infer', 'python')} photos/ -o predictions.csv"
        return Step(f"Serve {served}, which passed", line, more, mends=False)
    if lower:
        line = situation.changed(*(f"{key}={value}" for key, value in lower.items()))
        more = f"{said} No file passed. If that is too little for you, the model cannot be served as it is."
        return Step("Ask for what was reached, if that is enough for you", line, more, mends=False)
    return Step("No file of this model can be served", "", f"{said} Section Parity says which step loses it.", False)


def _reachable(situation: Situation, hops: Sequence[Hop]) -> dict[str, str]:
    """By key of the recipe, the thresholds that all these comparisons meet."""
    found: dict[str, list[str]] = {}
    for hop in hops:
        for one in missed(hop, situation.parity):
            found.setdefault(f"verify.thresholds.{hop.precision}.{one.key}", []).append(one.value)
    easiest = {True: max, False: min}
    return {key: easiest[key.endswith(AT_MOST)](values, key=float) for key, values in found.items()}


def _reached(situation: Situation, hop: Hop) -> str:
    """One file: what it does not reach, and what it does."""
    name = run_name(hop.precision.upper(), hop.backend)
    found = missed(hop, situation.parity)
    if hop.compared and not hop.finite:
        return f"{name} gives {UNUSABLE} on this model.{_why_no_more(situation, hop)}"
    if not found:
        return sentence(f"{short_name(hop.run_name)}: {hop.why}")
    against = f", against {hop.reference}" if hop.kind == STEP else ""
    others = [one.words for one in found if one.key in AT_MOST]
    shown = listed([reached(hop), *others])
    return (
        f"{name} does not reach {listed(one.asked for one in found)} on this model. On "
        f"{count(hop.images, 'image')}{against}: {shown}.{_why_no_more(situation, hop)}"
    )


def _why_no_more(situation: Situation, hop: Hop) -> str:
    """Why other settings of the quantize stage would not help, by its own records."""
    if hop.precision == "fp32":
        return ""
    report = situation.calibration
    if report.budget_met if hop.precision == "int8" else report.fp16.budget_met:
        here = count(report.held_out_images, "held-out image")
        many = report.held_out_images + report.scale_images
        return (
            f" It was met on {here}, so keeping more layers changes nothing; more calibration images (here "
            f"{many:,}) bring the two closer."
        )
    if hop.precision == "fp16":
        return f" {count(len(report.fp16.kept), 'layer is', 'layers are')} in FP32 already."
    words = f" {report.int8_convolutions:,} of {count(report.convolutions, 'convolution')} compute in INT8"
    words += ", so hardly any of INT8's speed is left." if 2 * report.int8_convolutions < report.convolutions else "."
    best = _best_sqnr(situation, report)
    if best is not None and math.isfinite(best) and situation.recipe.quantize.max_kept < 1:
        words += f" With all in FP16 that cost anything about {best:.0f} dB would be reached (section Layers)."
    return words


def _served(situation: Situation) -> str:
    """The precisions of which all that ran passed, the fastest first, in words."""
    verdicts: dict[str, set[str]] = {}
    for hop in situation.parity.hops:
        verdicts.setdefault(hop.precision, set()).add(hop.verdict)
    passed = [name for name in FASTEST_FIRST if verdicts.get(name, set()) - {NOT_RUN} == {PASS}]
    return " or ".join(name.upper() for name in passed)
