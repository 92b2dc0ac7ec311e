"""Names of the files that stages hand to each other and to other programs, below ``artifacts/<recipe>/``."""

from __future__ import annotations

KERAS = "train/model.keras"
CARD = "train/model.json"
ONNX = {"fp32": "export/model.onnx", "fp16": "quantize/model.fp16.onnx", "int8": "quantize/model.int8.onnx"}
PARITY = "verify/parity.json"
REFERENCE = "verify/reference.npz"
BENCHMARK = "benchmark/benchmark.json"
PREDICTIONS = "infer/predictions.csv"
REPORT = "report/report.html"
