"""The chain of stages.

    images -> train -> export -> quantize -> build -> verify -> (benchmark) -> infer -> report

The benchmark is a command of its own, ``python -m benchmarks``, which defines its stage the same way. A stage's heavy
packages are imported where it runs: a machine that only runs a bundle has no TensorFlow, onnx or ONNX Runtime.
"""

from pipeline.stages import build, export, infer, quantize, report, train, verify

STAGES = (train.STAGE, export.STAGE, quantize.STAGE, build.STAGE, verify.STAGE, infer.STAGE, report.STAGE)
BY_NAME = {stage.name: stage for stage in STAGES}
