"""What a stage read and wrote, and from that: is its result up to date, and if not, why.

A result is up to date when no input byte, recipe slice or statement of the stage's own code changed and its files are
still what it wrote. Versions of tools are recorded; a difference is reported, not rerun, so that artifacts travel.
"""

import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from export.errors import ProjectError
from export.files import ROOT
from export.records import from_json, read_record, to_json
from pipeline.artifacts.code_key import code_digest
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
        inputs: name to sha256, for files ``stage/name`` and for image sets ``data/split``.
        config: the slice of the recipe.
        code: sha256 of the stage's own modules.
        environment: facts about this machine that decide too, of the stages that build or run engines.
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
    """``bundle.json``, which lies in front of a bundle's files.

    Attributes:
        schema: of this file.
        recipe: its name.
        recipe_sha256: of the recipe in the bundle.
        files: the others, by path relative to the folder of artifacts.
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
    outputs: Mapping[str, FileRecord]  # by path relative to the folder
    seconds: float
    versions: Mapping[str, str]
    result: Mapping[str, Any]  # what the stage reports: accuracy, verdict, skipped images
    finished: str = ""  # when it was written: UTC, ISO 8601, to the second; earlier versions did not say
    schema: int = SCHEMA


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a stage folder; None if there is none, or, with a warning, if it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        remedy = "Without it the result beside it does not count; `run` makes it anew."
        return read_record(Manifest, path, remedy=remedy, what="manifest")
    except ProjectError as error:
        _warn_once(str(error))
        return None


def read_stage(artifacts: Artifacts, stage: str) -> Manifest | None:
    """The record of a stage; None if there is none, or, with a warning, if it is damaged.

    Raises:
        UndeclaredError: it is not declared.
    """
    return read_manifest(artifacts.path(f"{stage}/{MANIFEST}").parent)


def read_result(manifest: Manifest, kind: type[T], remedy: str = "") -> T:
    """What a stage reported, as the type that it returned.

    Args:
        manifest: of the stage.
        kind: the dataclass.
        remedy: what to do where it is another. Defaults to "": to run the stage again.

    Raises:
        ProjectError: it is another; with the manifest and the key.
    """
    again = f"Run the {manifest.stage} stage again, with --force."
    return from_json(kind, manifest.result, f"{manifest.stage}/{MANIFEST}", remedy=remedy or again, what="result")


def as_recorded(artifacts: Artifacts, name: str) -> bool:
    """Whether a file ``stage/name`` that is there is what the stage's manifest says that it wrote.

    Raises:
        UndeclaredError: the file or the manifest is not declared.
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
    """Hash what a stage wrote into ``folder`` and record it there."""
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
    write_json(folder / MANIFEST, to_json(manifest))
    return manifest


def without_defaults(result: Any) -> dict[str, object]:
    """Those fields of a dataclass that say something else than their default, as plain JSON types."""
    said = {one.name for one in fields(result) if getattr(result, one.name) != _default(one)}
    return {name: value for name, value in to_json(result).items() if name in said}


def _default(one: Field[Any]) -> Any:
    return one.default_factory() if one.default_factory is not MISSING else one.default


def why_stale(folder: Path, manifest: Manifest | None, key: Key) -> list[str]:
    """The reasons to run a stage; empty when its result is up to date."""
    if manifest is None:
        return ["it has not run"]
    reasons = [f"input {name}: {what}" for name, what in _changes(manifest.inputs, key.inputs)]
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
    """Keys of the recipe that say something else than when a stage ran."""
    return [f"{name}: {what}" for name, what in _changes(_flat(manifest.config), _flat(config))]


def environment_changes(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Differences of the machine that call for a rerun.

    A result that was made with more than this machine has is kept: rerunning it here would only replace it by less.
    Without the GPU or the TensorRT of then nothing else counts; of the rest, a library or a permission, what is gone
    counts by itself alone.
    """
    if any(recorded.get(name) and not here.get(name) for name in ("gpu", "tensorrt")):
        return []
    kept = {name: value for name, value in recorded.items() if name in here}
    return [f"this machine's {name}: {what}" for name, what in _changes(kept, here)]


def version_changes(manifest: Manifest) -> list[str]:
    """Tools whose version here differs from the one that a result was made with (both installed)."""
    here = tool_versions()
    return [
        f"{tool} {then} -> {here[tool]}" for tool, then in manifest.versions.items() if here.get(tool, then) != then
    ]


def code_hash(module: str) -> str:
    """sha256 over what a module and those that it imports do: see ``pipeline.artifacts.code_key``."""
    return code_digest(module, ROOT)


def tool_versions() -> dict[str, str]:
    """Installed versions of the tools that can change a result, without importing them."""
    return {"python": platform.python_version(), **versions_of(TOOLS)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str]]:
    def short(value: Any) -> str:
        text = str(value)
        return text[:12] if len(text) == 64 else text

    changes = []
    for name in sorted(then.keys() | now.keys()):
        if name not in then:
            changes.append((name, f"is new ({short(now[name])})"))
        elif name not in now:
            changes.append((name, "is gone"))
        elif then[name] != now[name]:
            changes.append((name, f"{short(then[name])} -> {short(now[name])}"))
    return changes
