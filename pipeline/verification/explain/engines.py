"""Engines that were built from another file. NumPy and the standard library only, Python 3.10 syntax."""

from __future__ import annotations

from pathlib import Path

from export.errors import ProjectError
from export.tensorrt.sidecar import read_sidecar
from pipeline.verification.explain.fit import Explanation


def explain_engine(path: Path, files: dict[str, str]) -> Explanation | None:
    """Find an engine whose ONNX file is not here any more.

    Args:
        path: The plan.
        files: sha256 of the ONNX files that are here, by name.
    """
    try:
        sidecar = read_sidecar(path)
    except ProjectError:
        return None  # its own error when the engine is run
    if sidecar.onnx_sha256 in files.values():
        return None
    precision = sidecar.precision
    present = next((f"{name} has {digest[:12]}" for name, digest in files.items() if precision in name), "")
    return Explanation(
        "stale engine",
        "The engine was built from another ONNX file than the one that is here now, so it answers as an earlier model "
        "did.",
        f"Its sidecar names a file with sha256 {sidecar.onnx_sha256[:12]}…, which none of the present files has"
        f"{f'; {present}…' if present else ''}.",
        "Build it again: run the build stage with --force.",
    )
