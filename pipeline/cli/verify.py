"""``verify`` with its own options: ONNX files of other tools, JUnit XML, and what changed since an earlier verdict."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from export.files import write_atomic
from export.records import to_json
from export.words import count
from pipeline.artifacts.diagnosis import Hint, read_diagnosis
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.manifest import read_manifest, tool_versions
from pipeline.artifacts.parity_report import FAIL, INCONCLUSIVE, ParityReport, read_parity
from pipeline.artifacts.paths import CALIBRATION_IMAGES, DIAGNOSIS, KERAS, PARITY, Artifacts
from pipeline.cli import options as cli
from pipeline.data.dataset import Pixels, check_classes, check_readable
from pipeline.data.sample import DataMissingError, Sample
from pipeline.models.model_card import ModelCard
from pipeline.verification.checks.calibration_images import refuse_calibration_images
from pipeline.verification.outside.baseline import WORSE, changes_since, changes_table
from pipeline.verification.outside.junit import junit_xml
from pipeline.verification.outside.named_images import NamedImages, read_folder, refuse_shared_images
from pipeline.workflow.context import Context

log = logging.getLogger(__name__)


def verify_onnx_files(args: argparse.Namespace, context: Context) -> dict[str, object]:
    """Compare the recipe's Keras model with the ONNX files of the command line; write nothing into the artifacts.

    Args:
        args: parsed options of ``verify``.
        context: of the recipe.

    Returns:
        dict[str, object]: the JSON line: the verdict, every comparison, hints, and the exit status.
    """
    from pipeline.verification.layers.compare_files import run_tables
    from pipeline.verification.outside.onnx_files import compare_onnx_files, joint_report
    from pipeline.verification.table import parity_table

    context.required(KERAS)
    card = context.card()
    images, labels = _test_images(context, card) if args.images is None else _named_images(args.images, context, card)
    compared = compare_onnx_files(
        args.onnx, context.root / KERAS, card, context.settings, images, labels, args.precision, layers=args.layers
    )
    report = joint_report(compared)
    hints = _with_commands([hint for one in compared for hint in one.hints], context)
    log.info("parity on %s:\n%s", count(len(images.names), "image"), parity_table(report, hints=hints))
    for name, note in {hop.run_name: hop.note for hop in report.hops if hop.note}.items():
        log.info("%s: %s", name, note)
    runs = [one.layers for one in compared if one.layers is not None]
    for table in run_tables(runs):
        log.info("%s", table)
    for warning in report.warnings:
        log.warning("%s", warning)
    if report.verdict == INCONCLUSIVE:
        log.warning("verdict: inconclusive: the images are too few to tell")
    if args.junit is not None:
        _write_junit(args.junit, context, report, tool_versions(), hints)
    return {
        "recipe": context.recipe.name,
        "verdict": report.verdict,
        "images": len(images.names),
        "hops": [to_json(hop) for hop in report.hops],
        "hints": [to_json(hint) for hint in hints],
        **({"layers": [to_json(run) for run in runs]} if args.layers else {}),
        "exit": cli.VERDICT_FAIL if report.verdict == FAIL else cli.DONE,
    }


def finish_verdict(
    args: argparse.Namespace, context: Context, baseline: ParityReport | None, result: dict[str, object]
) -> dict[str, object]:
    """Do what the options ask of the recipe's verdict, which may have been up to date.

    Args:
        args: parsed options of ``verify``.
        context: of the recipe.
        baseline: the earlier verdict, read before this one may have replaced it; None without ``--baseline``.
        result: the JSON line so far.

    Returns:
        dict[str, object]: the JSON line; the exit status is 1 too where a file got worse than in the baseline.
    """
    if args.junit is None and baseline is None:
        return result
    report = read_parity(context.root / PARITY)
    if args.junit is not None:
        manifest = read_manifest(context.folder("verify"))
        versions = manifest.versions if manifest is not None else {}
        _write_junit(args.junit, context, report, versions, _with_commands(_recorded_hints(context), context))
    if baseline is None:
        return result
    changes = changes_since(baseline, report)
    if not changes:
        log.info("nothing changed beyond noise since %s", args.baseline)
    else:
        log.info("since %s:\n%s", args.baseline, changes_table(changes))
    worse = sum(change.what == WORSE for change in changes)
    if worse:
        log.error("%s got worse than in %s", count(worse, "number"), args.baseline)
    return {
        **result,
        "baseline": {"worse": worse, "changes": [to_json(change) for change in changes]},
        "exit": cli.VERDICT_FAIL if worse else result["exit"],
    }


def _recorded_hints(context: Context) -> Sequence[Hint]:
    """Return the hints that the verify stage found for the verdict that is there."""
    path = context.root / DIAGNOSIS
    if not path.is_file():
        return ()
    diagnosis = read_diagnosis(path)
    return diagnosis.hints if diagnosis.parity_sha256 == sha256_file(context.root / PARITY) else ()


def _with_commands(hints: Sequence[Hint], context: Context) -> list[Hint]:
    """Return hints with this recipe's commands in their advice."""
    return [replace(hint, remedy=context.invocation.complete(hint.remedy)) for hint in hints]


def _write_junit(
    path: Path, context: Context, report: ParityReport, versions: Mapping[str, str], hints: Sequence[Hint]
) -> None:
    properties = {
        "recipe": context.recipe.name,
        **({"images_sha256": report.images_sha256} if report.images_sha256 else {}),
        **{f"sha256 of {name}": digest for name, digest in report.subjects.items()},
        **{f"version of {name}": version for name, version in versions.items()},
    }
    write_atomic(path, junit_xml(report, f"verify {context.recipe.name}", properties, hints))
    log.info("wrote %s", path)


def _test_images(context: Context, card: ModelCard) -> tuple[NamedImages, np.ndarray]:
    """Decode the recipe's test images; return them with their labels."""
    settings = context.recipe.verify
    check_classes(context.images, card.classes)
    samples = context.images.splits["test"][: settings.max_images]
    refuse_calibration_images(samples, Artifacts(context.root))
    pixels = Pixels(card.decode, context.recipe.data.max_bad_images)
    images, labels = pixels.all(samples, "test images")
    check_readable(len(images), settings.min_images, "test", pixels)
    read = [sample for sample in samples if sample.name not in pixels.skipped]
    return NamedImages(tuple(s.name for s in read), images, tuple(s.sha256 for s in read)), labels


def _named_images(folder: Path, context: Context, card: ModelCard) -> tuple[NamedImages, np.ndarray]:
    """Decode the images of a folder, which have no labels, and refuse those that calibrated."""
    log.info("the images of %s have no labels: agreement is measured, no accuracy", folder)
    images = read_folder(folder, card.decode)
    samples = [Sample(name, -1, digest, Path) for name, digest in zip(images.names, images.sha256)]
    artifacts = Artifacts(context.root)
    refuse_calibration_images(samples, artifacts)
    if not artifacts.has(CALIBRATION_IMAGES):  # nothing was quantized here; what would calibrate is known all the same
        try:
            calibration = {sample.sha256: sample.name for sample in context.images.splits["calibration"]}
        except DataMissingError as error:
            log.warning("whether images of %s calibrated is not checked: %s", folder, error)
        else:
            refuse_shared_images(dict(zip(images.sha256, images.names)), calibration)
    return images, np.full(len(images.names), -1, np.int64)
