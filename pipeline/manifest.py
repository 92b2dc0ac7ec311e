"""What a stage read and wrote, and from that: is its result up to date, and if not, why.

A result is up to date when no input byte, recipe slice or statement of the stage's own code changed and its files are
still what it wrote. Versions of tools are recorded; a difference is reported, not rerun, so that artifacts travel.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_bytes, sha256_file, write_json
from pipeline.source_code import source_digest

SCHEMA = 1
MANIFEST = "manifest.json"
ROOT = Path(__file__).resolve().parent.parent
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
        environment: facts about this machine that decide too (build, verify and benchmark only).
    """

    inputs: dict[str, str]
    config: dict[str, Any]
    code: str
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The record beside a stage's files."""

    stage: str
    recipe: str
    inputs: dict[str, str]
    config: dict[str, Any]
    code: str
    environment: dict[str, Any]
    outputs: dict[str, dict[str, Any]]  # relative path to {"sha256", "bytes"}
    seconds: float
    versions: dict[str, str]
    result: dict[str, Any]  # what the stage reports: accuracy, verdict, skipped images
    schema: int = SCHEMA


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a stage folder; None if there is none or it is of another schema or damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        tree = read_json(path)
        if tree.get("schema") != SCHEMA:
            return None
        manifest = Manifest(**tree)
    except (PipelineError, TypeError, AttributeError):
        return None
    mappings = (manifest.inputs, manifest.config, manifest.environment, manifest.versions, manifest.result)
    outputs = manifest.outputs
    whole = all(isinstance(m, dict) for m in mappings) and isinstance(outputs, dict)
    return (
        manifest
        if whole and all(isinstance(entry, dict) and {"sha256", "bytes"} <= set(entry) for entry in outputs.values())
        else None
    )


def write_manifest(
    folder: Path, *, stage: str, recipe: str, key: Key, seconds: float, result: dict[str, Any]
) -> Manifest:
    """Hash what a stage wrote into ``folder`` and record it there."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    outputs = {p.relative_to(folder).as_posix(): {"sha256": sha256_file(p), "bytes": p.stat().st_size} for p in files}
    manifest = Manifest(
        stage=stage,
        recipe=recipe,
        **asdict(key),
        outputs=outputs,
        seconds=round(seconds, 3),
        versions=tool_versions(),
        result=result,
    )
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def why_stale(folder: Path, manifest: Manifest | None, key: Key) -> list[str]:
    """The reasons to run a stage; empty when its result is up to date."""
    if manifest is None:
        return ["it has not run"]
    reasons = [f"input {name}: {what}" for name, what in _changes(manifest.inputs, key.inputs)]
    reasons += [f"recipe {name}: {what}" for name, what in _changes(_flat(manifest.config), _flat(key.config))]
    if manifest.code != key.code:
        reasons.append("the stage's code changed")
    reasons += environment_changes(manifest.environment, key.environment)
    for name, recorded in manifest.outputs.items():
        path = folder / name
        if not path.is_file():
            reasons.append(f"output {name} is missing")
        elif path.stat().st_size != recorded["bytes"] or sha256_file(path) != recorded["sha256"]:
            reasons.append(f"output {name} was altered")
    return reasons


def environment_changes(recorded: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Differences of the machine that call for a rerun.

    A result that was made with more than this machine has (with a GPU, with a TensorRT) is kept: rerunning it here
    would only replace it by less.
    """
    if any(recorded.get(name) and not here.get(name) for name in ("gpu", "tensorrt")):
        return []
    return [f"this machine's {name}: {what}" for name, what in _changes(recorded, here)]


def version_changes(manifest: Manifest) -> list[str]:
    """Tools whose version here differs from the one that a result was made with (both installed)."""
    here = tool_versions()
    return [
        f"{tool} {then} -> {here[tool]}" for tool, then in manifest.versions.items() if here.get(tool, then) != then
    ]


def code_hash(modules: Sequence[str]) -> str:
    """sha256 over what source files do, given relative to the repository: see ``pipeline.source_code``."""
    return sha256_bytes("\0".join(source_digest(ROOT / module) for module in sorted(modules)).encode())


def tool_versions() -> dict[str, str]:
    """Installed versions of the tools that can change a result, without importing them."""
    versions = {"python": platform.python_version()}
    for tool in TOOLS:
        try:
            versions[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _changes(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str]]:
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
