"""Writes a Triton model repository: three models, where they come from, a client; whole or not there."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from export.errors import ProjectError
from export.files import ROOT, replacing_folder
from export.records import read_record
from export.words import count, listed
from pipeline.artifacts.code_key import closure
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.machine import versions_of
from pipeline.artifacts.manifest import FileRecord, tool_versions
from pipeline.artifacts.parity_report import PASS, ParityReport
from pipeline.artifacts.paths import PARITY, Artifacts
from pipeline.models.model_card import ModelCard
from pipeline.recipe.schema import Thresholds
from pipeline.serving.protocol import VERSION, decode_model, files_model
from pipeline.serving.select_model import Selection
from pipeline.triton.config import CONFIG, LABELS, Serving, classifier_config, decoder_config, ensemble_config
from pipeline.triton.readme import PACKAGES, readme

log = logging.getLogger(__name__)

RECORD, README, CLIENT = "repository.json", "README.md", "client.py"
CODE, PROBE = "decoding", "probe.jpg"  # as in `pipeline.triton.decode_model`, which imports nothing from here
KEPT = ".keep"  # Triton wants a folder of the version, and git and many copies drop an empty one
_CACHE = "__pycache__"  # what a server's Python adds


@dataclass(frozen=True, kw_only=True)
class Repository:
    """``repository.json``: what answers, why it may, and every file.

    Attributes:
        schema: version of this file format.
        recipe: its name; that of the models begins with it.
        model: the file that classifies, below the recipe's artifacts.
        backend: that it was verified on: "tensorrt", "onnxruntime-cuda" or "onnxruntime".
        precision: "fp32", "fp16" or "int8".
        verdict: of the verify stage.
        thresholds: that it was judged by.
        parity_sha256: digest of the verdict, ``verify/parity.json``.
        images_sha256: digest of the test images.
        tensorrt: version of TensorRT that the server needs for an engine; None for an ONNX file.
        compute_capability: of the GPU that an engine was built on; None for an ONNX file.
        versions: of the tools here.
        files: every other file of the folder, by its path in it.
    """

    schema: int = 1
    recipe: str
    model: str
    backend: str
    precision: str
    verdict: Literal["pass"]
    thresholds: Thresholds
    parity_sha256: str
    images_sha256: str
    tensorrt: str | None
    compute_capability: str | None
    versions: Mapping[str, str]
    files: Mapping[str, FileRecord]


def write_repository(
    output: Path, serving: Serving, choice: Selection, card: ModelCard, artifacts: Artifacts, report: ParityReport
) -> Repository:
    """Write a repository, or replace one that nobody changed.

    Args:
        output: the folder.
        serving: what is served.
        choice: the file that classifies.
        card: of the model.
        artifacts: files of the recipe.
        report: the verdict on it.

    Raises:
        ProjectError: names that Triton or the folder cannot take, a folder that is not ours or was changed, or a file
            that was altered meanwhile.
    """
    labels = _labels(card.classes)
    if serving.name.lower() in (RECORD, README.lower(), CLIENT):
        raise ProjectError(
            f"Expected a recipe whose name is no file of a repository. Received: {serving.name}. Rename the recipe."
        )
    refuse_changed(output)
    versions = tool_versions() | versions_of(PACKAGES)
    images = max((hop.images for hop in report.hops if hop.candidate == choice.name), default=0)
    with replacing_folder(output) as folder:
        classifier, decoder, ensemble = (
            folder / name for name in (serving.name, decode_model(serving.name), files_model(serving.name))
        )
        for model in (classifier, decoder, ensemble):
            (model / VERSION).mkdir(parents=True)
        copied = classifier / VERSION / serving.model_name
        shutil.copyfile(choice.path, copied)
        if sha256_file(copied) != report.subjects[choice.name]:
            raise ProjectError(
                f"Expected {choice.path} as it was verified. Received: another file, altered meanwhile. Try again."
            )
        _write(classifier / CONFIG, classifier_config(serving))
        _write(decoder / CONFIG, decoder_config(serving, _write_decoder(decoder / VERSION, card)))
        _write(ensemble / CONFIG, ensemble_config(serving))
        _write(ensemble / VERSION / KEPT, "")
        for model in (classifier, ensemble):
            _write(model / LABELS, labels)
        _write(folder / README, readme(serving, choice, images, versions))
        shutil.copyfile(ROOT / "pipeline" / "triton" / CLIENT, folder / CLIENT)
        sidecar = serving.file.sidecar
        record = Repository(
            recipe=serving.name,
            model=choice.name,
            backend=choice.backend,
            precision=choice.precision,
            verdict=PASS,
            thresholds=report.thresholds[choice.precision],
            parity_sha256=sha256_file(artifacts.path(PARITY)),
            images_sha256=report.images_sha256,
            tensorrt=sidecar.tensorrt_version if sidecar else None,
            compute_capability=sidecar.compute_capability if sidecar else None,
            versions=versions,
            files={
                path.relative_to(folder).as_posix(): FileRecord(sha256_file(path), path.stat().st_size)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        )
        write_json(folder / RECORD, record)
    return record


def refuse_changed(output: Path) -> None:
    """Refuse to replace a folder that is not a repository as it was written.

    Raises:
        ProjectError: it holds other files, or one was changed; with their names.
    """
    names = (path.relative_to(output) for path in output.rglob("*") if not path.is_dir()) if output.is_dir() else ()
    there = {name.as_posix() for name in names if _CACHE not in name.parts} - {RECORD}
    if not there and not (output / RECORD).exists():
        return
    remedy = "Move it away, or name another folder with -o."
    if not (output / RECORD).is_file():
        raise ProjectError(f"Expected no folder, or a repository of this command. Received: {output}. {remedy}")
    record = read_record(Repository, output / RECORD, remedy=remedy, what="record of a repository")
    changed = [
        name
        for name in sorted({*there, *record.files})
        if name not in there or name not in record.files or sha256_file(output / name) != record.files[name].sha256
    ]
    if changed:
        raise ProjectError(
            f"Expected a repository as it was written, to replace it. Received: {output}, where "
            f"{count(len(changed), 'file')} changed since, were added or are gone: {listed(changed)}. {remedy}"
        )


def _labels(classes: tuple[str, ...]) -> str:
    """Return the lines of the file of labels.

    Raises:
        ProjectError: a class has a line end or another control character in its name.
    """
    if odd := [name for name in classes if any(unicodedata.category(letter) == "Cc" for letter in name)]:
        raise ProjectError(
            f"Expected names of classes without line ends and other control characters, since Triton reads a class a "
            f"line. Received: {listed(map(ascii, odd))}. Name them otherwise with model.classes, and train or import "
            "the model again."
        )
    return "".join(f"{name}\n" for name in classes)


def _write_decoder(folder: Path, card: ModelCard) -> dict[str, str]:
    """Write what decodes, and return the parameters that it needs besides."""
    module = "pipeline.triton.decode_model"
    files = [name for name in closure(module, ROOT, borders=()) if name != f"{module.replace('.', '/')}.py"]
    packages = {parent / "__init__.py" for name in files for parent in Path(name).parents if parent.name}
    for name in sorted({*map(Path, files), *packages}):
        (folder / CODE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / CODE / name)
    shutil.copyfile(ROOT / "pipeline" / "triton" / "decode_model.py", folder / "model.py")
    (folder / PROBE).write_bytes(probe := _probe(card.size))
    return {"probe_sha256": hashlib.sha256(card.decode.pixels(probe).tobytes()).hexdigest()}


def _probe(size: tuple[int, int]) -> bytes:
    """Return a JPEG of smooth colours, a little larger than the model's input."""
    height, width = (side + side // 2 + 1 for side in size)
    down, across = np.mgrid[:height, :width]
    waves = (128 + 120 * np.sin(across / (5 + band) + down / (9 - band)) for band in range(3))
    picture = np.stack(list(waves), axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    return file.getvalue()


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())
