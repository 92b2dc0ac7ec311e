"""Names of the files that stages hand to each other and to other programs, below ``artifacts/<recipe>/``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from export.sidecar import PRECISIONS

KERAS = "train/model.keras"
CARD = "train/model.json"
ONNX: Mapping[str, str] = {
    "fp32": "export/model.onnx",
    "fp16": "quantize/model.fp16.onnx",
    "int8": "quantize/model.int8.onnx",
}
# For TensorRT 8.6, whose parser is for opset 17; there only where the recipe says quantize.tensorrt8.
TENSORRT8: Mapping[str, str] = {
    "fp16": "quantize/model.fp16-trt8.onnx",
    "int8": "quantize/model.int8-trt8.onnx",  # FP32 where it is not INT8
}
# An engine is a plan and the sidecar beside it: whoever reads the one reads the other.
ENGINES = ("build/*/*.plan", "build/*/*.json")
PARITY = "verify/parity.json"
REFERENCE = "verify/reference.npz"
BENCHMARK = "benchmark/benchmark.json"
PREDICTIONS = "infer/predictions.csv"
REPORT = "report/report.html"

_ENGINE = rf"({'|'.join(PRECISIONS)})(-[a-z0-9_]{{1,100}})?\.(plan|json)"
# Every file that a stage writes, by the stage; its manifest.json besides. What else an archive holds is not ours.
_WRITTEN: Mapping[str, str] = {
    "train": r"model\.(keras|json)|history\.json|images\.json|samples\.npz|(curves|samples)\.png|backbone\.weights\.h5",
    "export": r"model\.onnx|summary\.json",
    "quantize": r"model\.(fp16|int8)(-trt8)?\.onnx|(scales|placement|calibration|images)\.json|sensitivity\.(csv|png)",
    "build": rf"(tensorrt|rtx)/{_ENGINE}",
    "verify": r"parity\.json|reference\.npz",
    "benchmark": r"benchmark\.json",
    "infer": r"predictions\.csv|images/\d{3,9}-[^/\\\0]{1,250}\.png",
    "report": r"report\.html",
}


def is_written(name: str) -> bool:
    """Whether a stage writes a file of that name.

    Args:
        name: as ``<stage>/<file>``, with forward slashes.
    """
    stage, _, file = name.partition("/")
    return stage in _WRITTEN and re.fullmatch(rf"manifest\.json|{_WRITTEN[stage]}", file) is not None
