"""What of the scenarios this machine has no library for: a machine that only runs a bundle has one TensorRT alone."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence

from benchmarks.scenarios import Scenario
from export.capabilities import find_tensorrt
from export.errors import ExportError
from export.sidecar import read_sidecar

log = logging.getLogger(__name__)


def installed(wanted: Sequence[Scenario]) -> list[Scenario]:
    """Those whose library is installed here; what is left out is said, once a library.

    Args:
        wanted: what there are files for.
    """
    kept: list[Scenario] = []
    lacking: dict[str, set[str]] = {}
    for scenario in wanted:
        library = _lacking(scenario)
        if library:
            lacking.setdefault(library, set()).add(f"{scenario.path.parent.name}/{scenario.path.name}")
        else:
            kept.append(scenario)
    for library, files in lacking.items():
        log.info("  not timed, as %s is not installed here: %s", library, ", ".join(sorted(files)))
    return kept


def _lacking(scenario: Scenario) -> str:
    """The library that a scenario needs and this machine has not; "" if it has it, or cannot be told."""
    if scenario.backend == "keras":
        return "" if importlib.util.find_spec("keras") else "Keras"
    if scenario.backend.startswith("onnxruntime"):
        return "" if importlib.util.find_spec("onnxruntime") else "ONNX Runtime"
    try:
        flavour = read_sidecar(scenario.path).flavour
        return "" if find_tensorrt(flavour) else {"rtx": "TensorRT-RTX"}.get(flavour, "TensorRT")
    except ExportError:
        return ""  # its runner says what is wrong with it
