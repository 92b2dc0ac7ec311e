"""The report's section on engines: what was built, for which machines, and whether it ran."""

from __future__ import annotations

from collections.abc import Mapping

from export.errors import ProjectError
from export.sidecar import Sidecar, read_sidecar
from pipeline.artifacts import Artifacts
from pipeline.html import Cell, Section, Table, badge, section, size
from pipeline.manifest import read_result, read_stage
from pipeline.stage_records import Built
from pipeline.words import sentence

HEAD = ("verdict", "engine", "TensorRT", "built for", "batch min / opt / max", "convolutions", "*size", "*build time")
SHORT = 24  # characters of a cell; what is longer is a footnote


def engines_section(artifacts: Artifacts, verdicts: Mapping[str, str]) -> Section:
    """The engines that are there; one whose sidecar is damaged is listed with the reason.

    Args:
        artifacts: of a recipe.
        verdicts: on each engine as it is now, by file.
    """
    manifest = read_stage(artifacts, "build")
    rows = [(badge(verdict), *_facts(artifacts, name)) for name, verdict in verdicts.items()]
    why_not = read_result(manifest, Built).why_not if manifest else ""
    return section("Engines", "engines.html.j2", engines=Table(HEAD, rows, "engines"), why_not=why_not)


def _facts(artifacts: Artifacts, name: str) -> tuple[str | Cell, ...]:
    short = name.removeprefix("build/")
    try:
        sidecar = read_sidecar(artifacts.path(name))
    except ProjectError as error:
        return (Cell(short, remarks=[str(error)]), *[""] * 6)
    profile = sidecar.profile
    runs_on = ", ".join(sidecar.targets) or sidecar.gpu or sidecar.runs_on or ""
    long = f"Runs on {runs_on}." if len(runs_on) > SHORT else ""
    return (
        Cell(short, remarks=[long, *map(sentence, sidecar.warnings)]),
        f"{sidecar.flavour} {sidecar.tensorrt_version}",
        "" if long else runs_on,
        f"{profile.min} / {profile.opt} / {profile.max}",
        _convolutions(sidecar),
        size(sidecar.plan_bytes),
        "" if sidecar.seconds is None else f"{sidecar.seconds:.1f} s",
    )


def _convolutions(sidecar: Sidecar) -> str:
    """How many run in which type, or, where the engine was not loaded, how many were asked for in which."""
    found = sidecar.found.convolutions if sidecar.found else {}
    asked = sidecar.asked.convolutions if sidecar.asked else {}
    listed = ", ".join(f"{number} {kind.upper()}" for kind, number in (found or asked).items())
    return listed if found or not listed else f"{listed} asked for"
