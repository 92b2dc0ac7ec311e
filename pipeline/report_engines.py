"""The report's section on engines: what was built, for which machines, and whether it ran."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.errors import ExportError
from export.sidecar import Sidecar, read_sidecar
from pipeline.html import Footnotes, Section, badge, size, table, text
from pipeline.layout import engines
from pipeline.manifest import read_manifest
from pipeline.words import count, sentence

HEAD = (
    *("verdict", "engine", "TensorRT", "built for", "batch min / opt / max", "convolutions", "*size"),
    "*build time",
)
SHORT = 24  # characters of a cell; what is longer is a footnote


def engines_section(root: Path, verdicts: Mapping[str, str]) -> Section:
    """The engines that are there; one whose sidecar is damaged is listed with the reason.

    Args:
        root: a recipe's artifacts.
        verdicts: on each engine as it is now, by file.
    """
    remarks = Footnotes("engines")
    rows = []
    for plan in engines(root):
        verdict = verdicts[plan.relative_to(root).as_posix()]
        rows.append((badge(verdict, verdict), *_facts(plan, remarks)))
    if not rows:
        manifest = read_manifest(root / "build")
        why = manifest.result.get("why_not", "") if manifest else ""
        return Section("Engines", f"None was built on this machine. {text(why)}")
    words = f"{count(len(rows), 'TensorRT engine')}, built from the ONNX files."
    return Section("Engines", words, table(HEAD, rows) + remarks.html)


def _facts(plan: Path, remarks: Footnotes) -> tuple[str, ...]:
    name = text(f"{plan.parent.name}/{plan.name}")
    try:
        sidecar = read_sidecar(plan)
    except ExportError as error:
        return (name + remarks.mark(str(error)), *[""] * 6)
    profile = sidecar.profile
    runs_on = ", ".join(sidecar.targets) or sidecar.gpu or sidecar.runs_on or ""
    long = f"Runs on {runs_on}." if len(runs_on) > SHORT else ""
    return (
        name + remarks.mark(long, *map(sentence, sidecar.warnings)),
        text(f"{sidecar.flavour} {sidecar.tensorrt_version}"),
        "" if long else text(runs_on),
        f"{profile.min} / {profile.opt} / {profile.max}",
        text(_convolutions(sidecar)),
        size(sidecar.plan_bytes),
        "" if sidecar.seconds is None else f"{sidecar.seconds:.1f} s",
    )


def _convolutions(sidecar: Sidecar) -> str:
    """How many run in which type, or, where the engine was not loaded, how many were asked for in which."""
    found = sidecar.found.convolutions if sidecar.found else {}
    asked = sidecar.asked.convolutions if sidecar.asked else {}
    listed = ", ".join(f"{number} {kind.upper()}" for kind, number in (found or asked).items())
    return listed if found or not listed else f"{listed} asked for"
