"""The verify stage: Keras' logits on the test images, and how close each exported file comes to them."""

import logging
from dataclasses import replace
from pathlib import Path

from export.errors import DataError, ProjectError
from export.tensorrt.driver import driver_status
from export.words import count, listed
from pipeline.artifacts.diagnosis import Diagnosis
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.inputs import Consulted, Inputs, Optional, Required, Split
from pipeline.artifacts.parity_report import INCONCLUSIVE, NOT_RUN
from pipeline.artifacts.paths import (
    CALIBRATION_IMAGES,
    CARD,
    DIAGNOSIS,
    IMAGE_RESULTS,
    KERAS,
    PARITY,
    REFERENCE,
    ROUNDING,
    SCALES,
    TENSORS,
)
from pipeline.artifacts.results import Verified
from pipeline.data.splits import images_in_all
from pipeline.models.model_card import read_card
from pipeline.recipe.schema import Recipe
from pipeline.stages.declared import ENGINES, ONNX_FILES
from pipeline.workflow.environment import runtime_environment
from pipeline.workflow.stage import Stage

log = logging.getLogger(__name__)


def run(inputs: Inputs, settings: Recipe, out: Path) -> Verified:
    """Write ``reference.npz``, ``parity.json``, ``images.npz`` and ``diagnosis.json``.

    The files themselves do not change: the verdict is bound to them by their sha256.

    Raises:
        DataError: fewer test images than the recipe's minimum, unreadable ones above its limit, or images that
            calibrated the INT8 file.
        ProjectError: neither Keras nor a matching ``reference.npz`` is here, or nothing here runs any of the files.
    """
    from pipeline.serving.candidates import files_to_run, why_nothing_runs
    from pipeline.verification.checks.calibration_images import refuse_calibration_images
    from pipeline.verification.checks.doubts import accuracy_of, doubts
    from pipeline.verification.diagnose import Judged, compare_loading, explain_failures, with_decoding
    from pipeline.verification.flips import collect_results
    from pipeline.verification.parity import judge
    from pipeline.verification.table import describe_hint, parity_table, shorten_hops
    from pipeline.verification.verify import list_candidates, list_samples, make_reference, run_all

    card = read_card(inputs.path(CARD))
    samples = list_samples(inputs, settings.verify.max_images)
    refuse_calibration_images(samples, inputs)
    reference, skipped = make_reference(inputs, settings, card, out)
    candidates = list_candidates(inputs, settings.runtime)
    answers = run_all(candidates, reference, settings.verify.batch_size, card.check_runner)
    if all(answer.verdict == NOT_RUN for answer in answers.values()):
        reasons = listed(dict.fromkeys(answer.why for answer in answers.values()), separator="; ")
        raise ProjectError(
            f"Expected something here that runs {files_to_run(inputs)}. Received: nothing: "
            f"{why_nothing_runs(inputs, driver_status()) or reasons}. There is no new verdict, and a former verdict "
            "stands. Install what runs them, or verify where they run."
        )
    predictions = reference.logits.argmax(axis=1)
    warnings = [*card.deviations, *doubts(predictions, reference.labels, card)]
    decoding = compare_loading(samples, card, inputs, settings.model.allow)
    parity = with_decoding(judge(candidates, answers, reference, settings.verify.thresholds, warnings), decoding)
    write_json(out / Path(PARITY).name, parity)
    results = collect_results(reference, candidates, answers)
    results.write(out / Path(IMAGE_RESULTS).name)
    log.info("parity on %s:\n%s", count(len(reference.labels), "test image"), parity_table(parity, results))
    compared = Judged(parity, candidates, answers, reference, card)
    hints = explain_failures(compared, inputs, settings.model.allow, decoding)
    write_json(out / Path(DIAGNOSIS).name, Diagnosis(sha256_file(out / Path(PARITY).name), hints, decoding))
    result = Verified(
        parity.verdict,
        len(reference.labels),
        accuracy_of(predictions, reference.labels),
        skipped,
        parity.warnings,
        hops=shorten_hops(parity, results),
        hints=tuple(describe_hint(hint, parity) for hint in hints),
    )
    if parity.verdict != INCONCLUSIVE:
        return result
    needed = max(hop.images_to_decide or 0 for hop in parity.hops)
    unused, in_all = count_further_images(inputs, settings.verify.max_images, needed)
    return replace(result, images_to_decide=needed, images_left=unused, images_in_all=in_all)


def count_further_images(inputs: Inputs, most: int, needed: int) -> tuple[int | None, int | None]:
    """Count the test images that verify.max_images leaves out, and the images in all that give enough for a verdict.

    Args:
        inputs: of the stage.
        most: the recipe's verify.max_images.
        needed: test images that decide.

    Returns:
        tuple[int | None, int | None]: None where there are none, or where it is unknown.
    """
    try:
        images = inputs.images
    except DataError:
        return None, None
    unused = len(images.splits["test"]) - most
    return unused if unused > 0 else None, images_in_all(images, "test", needed)


STAGE = Stage(
    "verify",
    inputs=(
        *(Required(KERAS), Required(CARD), *ONNX_FILES, *ENGINES),
        *(Optional(CALIBRATION_IMAGES), Optional(TENSORS), Optional(SCALES), Optional(ROUNDING)),
        Split("test", minimum="verify.min_images"),
        *(Consulted(REFERENCE), Consulted("verify/manifest.json")),  # Keras' logits may differ in every run
    ),
    keys=(
        *("verify.min_images", "verify.max_images", "verify.batch_size", "verify.thresholds"),
        *("runtime", "model.allow", "data.max_bad_images"),
    ),
    run=run,
    result=Verified,
    environment=runtime_environment,
)
