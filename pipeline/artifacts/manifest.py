"""Manifests: what a stage read and wrote, and whether its result is up to date.

A result is up to date if its inputs, its part of the recipe and its code are unchanged and its files are as it wrote
them. Other versions of tools are logged and cause no rerun, so that artifacts can move between machines.
"""

import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from export.errors import ProjectError
from export.records import from_json, read_record, to_json
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.machine import versions_of
from pipeline.artifacts.paths import Artifacts

T = TypeVar("T")
log = logging.getLogger(__name__)

SCHEMA = 1
MANIFEST = "manifest.json"
INDEX = "bundle.json"
TOOLS = (
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "tf_keras",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "cuda-bindings",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class Key:
    """Everything that decides a stage's result.

    Attributes:
        inputs: sha256 by name, for files ``stage/name`` and for image sets ``data/split``.
        config: The stage's part of the recipe.
        code: sha256 of the stage's modules.
        environment: Facts about this machine that decide too, for stages that build or run engines.
    """

    inputs: dict[str, str]
    config: dict[str, object]
    code: str
    environment: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class FileRecord:
    """A file as a stage wrote it."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class BundleIndex:
    """``bundle.json``, the first file of a bundle.

    Attributes:
        schema: Version of this file format.
        recipe: Name of the recipe.
        recipe_sha256: sha256 of the recipe's file in the bundle.
        files: All other files, by path relative to the artifacts folder.
    """

    schema: int = 1
    recipe: str
    recipe_sha256: str
    files: Mapping[str, FileRecord]


@dataclass(frozen=True)
class Manifest:
    """The record beside a stage's files."""

    stage: str
    recipe: str
    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    code: str
    environment: Mapping[str, Any]
    outputs: Mapping[str, FileRecord]  # by path relative to the stage's folder
    seconds: float
    versions: Mapping[str, str]
    result: Mapping[str, Any]  # what the stage returns: accuracy, verdict, skipped images
    finished: str = ""  # when it was written: UTC, ISO 8601, in seconds; "" in manifests of earlier versions
    schema: int = SCHEMA


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest in a stage's folder; None if it is missing or, with a warning, damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return read_record(
            Manifest,
            path,
            remedy="Without it the result beside it does not count; `run` makes it again.",
            what="manifest",
        )
    except ProjectError as error:
        _warn_once(str(error))
        return None


def read_stage(artifacts: Artifacts, stage: str) -> Manifest | None:
    """Read the manifest of a stage; None if it is missing or, with a warning, damaged.

    Raises:
        UndeclaredError: It is not declared.
    """
    return read_manifest(artifacts.path(f"{stage}/{MANIFEST}").parent)


def read_result(manifest: Manifest, kind: type[T], remedy: str = "") -> T:
    """Return a stage's recorded result as the type that the stage returned.

    Args:
        manifest: Manifest of the stage.
        kind: Dataclass of the result.
        remedy: What to do if the record is not of this type. Defaults to "": run the stage again.

    Raises:
        ProjectError: The record is not of this type; with the manifest and the key.
    """
    remedy = remedy or f"Run the {manifest.stage} stage again, with --force."
    return from_json(kind, manifest.result, f"{manifest.stage}/{MANIFEST}", remedy=remedy, what="result")


def matches_manifest(artifacts: Artifacts, name: str) -> bool:
    """Return whether an existing file ``stage/name`` is as the stage's manifest records it.

    Raises:
        UndeclaredError: The file or the manifest is not declared.
    """
    stage, _, file = name.partition("/")
    manifest = read_stage(artifacts, stage)
    recorded = manifest.outputs.get(file) if manifest else None
    return recorded is not None and recorded.sha256 == sha256_file(artifacts.path(name))


@cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def write_manifest(
    folder: Path, *, stage: str, recipe: str, key: Key, seconds: float, result: dict[str, object]
) -> Manifest:
    """Hash the files that a stage wrote into ``folder`` and write their manifest there."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    outputs = {p.relative_to(folder).as_posix(): FileRecord(sha256_file(p), p.stat().st_size) for p in files}
    manifest = Manifest(
        stage=stage,
        recipe=recipe,
        **asdict(key),
        outputs=outputs,
        seconds=round(seconds, 3),
        versions=tool_versions(),
        result=result,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    )
    write_json(folder / MANIFEST, manifest)
    return manifest


def without_defaults(result: Any) -> dict[str, object]:
    """Return the fields of a dataclass that differ from their defaults, as plain JSON types."""
    defaults = {
        item.name: item.default if item.default_factory is MISSING else item.default_factory()
        for item in fields(result)
    }
    return {name: value for name, value in to_json(result).items() if getattr(result, name) != defaults[name]}


def why_stale(folder: Path, manifest: Manifest | None, key: Key) -> list[str]:
    """List the reasons to run a stage; empty if its result is up to date."""
    if manifest is None:
        return ["it has not run"]
    reasons = [f"input {change}" for change in _changes(manifest.inputs, key.inputs)]
    reasons += [f"recipe {change}" for change in config_changes(manifest, key.config)]
    if manifest.code != key.code:
        reasons.append("the stage's code changed")
    reasons += environment_changes(manifest.environment, key.environment)
    for name, recorded in manifest.outputs.items():
        path = folder / name
        if not path.is_file():
            reasons.append(f"output {name} is missing")
        elif path.stat().st_size != recorded.bytes or sha256_file(path) != recorded.sha256:
            reasons.append(f"output {name} was altered")
    return reasons


def config_changes(manifest: Manifest, config: Mapping[str, Any]) -> list[str]:
    """List the recipe's keys whose values changed since a stage ran, such as "train.seed: 1 -> 2"."""
    return _changes(flatten(manifest.config), flatten(config))


def environment_changes(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """List the differences of the machine that require a rerun.

    A result made with more than this machine has is kept, because a rerun could only replace it by less: without the
    recorded GPU or TensorRT no difference counts, and a library or permission that is missing here is ignored.
    """
    if any(recorded.get(name) and not current.get(name) for name in ("gpu", "tensorrt")):
        return []
    common = {name: value for name, value in recorded.items() if name in current}
    return [f"this machine's {change}" for change in _changes(common, current)]


def version_changes(manifest: Manifest) -> list[str]:
    """List the installed tools whose version differs from the one that a result was made with."""
    installed = tool_versions()
    return [
        f"{tool} {version} -> {installed[tool]}"
        for tool, version in manifest.versions.items()
        if installed.get(tool, version) != version
    ]


def tool_versions() -> dict[str, str]:
    """Return the installed versions of the tools that can change a result, without importing them."""
    return {"python": platform.python_version(), **versions_of(TOOLS)}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return the values of a part of the recipe by dotted key."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    changes = {name: f"is new ({_short(after[name])})" for name in after.keys() - before.keys()}
    changes |= dict.fromkeys(before.keys() - after.keys(), "is gone")
    changes |= {
        name: f"{_short(before[name])} -> {_short(after[name])}"
        for name in before.keys() & after.keys()
        if before[name] != after[name]
    }
    return [f"{name}: {change}" for name, change in sorted(changes.items())]


def _short(value: Any) -> str:
    return str(value)[:12] if len(str(value)) == 64 else str(value)  # 64: a sha256
