"""What the passes make is what a real TensorRT parses and compiles, without a GPU."""

import pytest

from export.fp16.convert import to_half
from export.onnx_passes.file import save_model

SIZES = (1, 4, 16)


def build(data: bytes) -> tuple[int, list[str]]:
    """The size of the plan for compute capability 8.6, and TensorRT's errors."""
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    messages: list[str] = []

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            if severity <= trt.ILogger.ERROR:
                messages.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(data):
        return 0, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("images", *((n, *shape) for n in SIZES))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return (plan.nbytes if plan is not None else 0), messages


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_plan_is_built(quantized, precision, tmp_path):
    exported, _, int8, _ = quantized
    model = {"fp32": exported.model, "int8": int8}.get(precision) or to_half(exported.model)
    path = save_model(model, tmp_path / f"{precision}.onnx")
    size, errors = build(path.read_bytes())
    assert size > 10_000, errors


def test_a_broken_graph_is_not_built(v1):
    """So that the test above can fail."""
    broken = v1.model.SerializeToString()[:-2000]
    size, errors = build(broken)
    assert size == 0
    assert errors
