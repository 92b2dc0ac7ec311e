"""One search in a process of its own: ``python step.py CODE NETWORK STEP LOGITS``, used by `benchmarks.int8.measure`.

CODE is the folder of the code that searches: this one, or a checkout of an earlier commit, whose search must have the
arguments `model, batches, held_out, options, track` and a result with `int8` and `report`. So the same images and the
same judgement hold for both, and nothing of a later search can change an earlier one's rows. The last line of the
output is JSON: the report, the seconds of the search and the peak memory of the process after it. The logits of the
INT8 file on the test images, and those of the FP32 file, are written to LOGITS.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

_BATCH = 8
# As a recipe without thresholds of its own has them, `pipeline.recipe.schema.VerifyThresholds`, for `Budget`.
BUDGETS = {"int8": (0.99, None, 20.0), "fp16": (0.999, None, 50.0)}
_THROUGHOUT = {"sensitivity": "never", "max_kept": 0.0}
_PLAIN = {**_THROUGHOUT, "method": "mse", "shift": "never", "rounding": "nearest", "trunk": "fp16", "effort": "fast"}
_TRUNK = {**_PLAIN, "trunk": "fp32"}
_SHIFTED = {**_TRUNK, "shift": "auto"}
_ROUNDED = {**_SHIFTED, "rounding": "second_order", "effort": "full"}
# Step -> options of the search that differ from its defaults. All but the shipped ones keep no layer in float to meet a
# budget.
STEPS: dict[str, dict[str, Any]] = {
    "before": _PLAIN,
    "trunk": _TRUNK,
    "shift": _SHIFTED,
    "rounding": _ROUNDED,
    "norms": _THROUGHOUT,
    "shipped": {},
    "fast": {"effort": "fast"},
}
# The same of an earlier commit's code, whose options are the defaults or the first of these.
EARLIER = {"earlier": _THROUGHOUT, "earlier shipped": {}}


def run_step(network: Path, step: str, logits: Path) -> dict[str, Any]:
    """Search, and run the result on the test images.

    Args:
        network: folder of `benchmarks.int8.networks.make_network`.
        step: one of `STEPS` or `EARLIER`.
        logits: ``.npz`` file to write: float32 (N, classes) ``reference`` and ``int8``.

    Returns:
        ``report``, ``seconds``, ``peak_memory_mib`` (None where the system does not report it).
    """
    import numpy as np

    from export.int8.options import SearchOptions
    from export.int8.search import search
    from export.int8.sensitivity import Budget
    from export.int8.simulate import HeldOut, simulate
    from export.onnx_passes.file import load_model
    from export.records import to_json
    from pipeline.artifacts.machine import peak_memory_mib

    with np.load(network / "images.npz", allow_pickle=False) as file:
        images = dict(file)
    model, scales = load_model(network / "model.onnx"), images["scales"]
    given = (STEPS | EARLIER)[step]
    known = {field.name for field in fields(SearchOptions)}
    if unknown := given.keys() - known:
        raise SystemExit(f"{step}: expected options of this code's search. Received: {sorted(unknown)}.")
    budgets: dict[str, Any] = {name: Budget(*limits) for name, limits in BUDGETS.items()}
    options = SearchOptions(**given, **budgets)
    start = time.perf_counter()
    result = search(
        model,
        lambda _: (scales[i : i + _BATCH] for i in range(0, len(scales), _BATCH)),
        HeldOut.of(model, images["held_out"], images["held_out_labels"], _BATCH),
        options,
        lambda names, *_: names,
    )
    seconds = time.perf_counter() - start
    peak = peak_memory_mib()
    np.savez(
        logits,
        reference=simulate(model, images["test"], _BATCH),
        int8=simulate(result.int8, images["test"], _BATCH),
    )
    return {"report": to_json(result.report), "seconds": round(seconds, 1), "peak_memory_mib": peak}


if __name__ == "__main__":
    code, folder, name, target = sys.argv[1:]
    sys.path[0] = code  # in place of this file's folder
    print(json.dumps(run_step(Path(folder), name, Path(target))))
