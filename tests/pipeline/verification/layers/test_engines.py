"""Layers of engines on a fake of every TensorRT, which computes with ONNX Runtime, and faults in its kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import DeviceUnavailableError, ProjectError
from export.tensorrt.driver import Device, DriverStatus
from export.tensorrt.library import find_tensorrt
from export.tensorrt.part import build_part
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.cuda import bindings
from pipeline.verification.layers import engines
from pipeline.verification.layers.engines import FedEngine, GraphBuilder, judge_on_engine, open_builder
from pipeline.verification.layers.reduce import reduce_graph
from pipeline.verification.layers.reduced_files import write_reduced
from tests.contract.versions import every_version, kind_of
from tests.fakes.cuda import FakeRuntime
from tests.fakes.graphs import FakeOfGraphs
from tests.pipeline.verification.layers.test_reduce import changed, operators, values
from tests.tiny_onnx import classifier, pixels

DEEP = classifier(more_convolutions=6)
IMAGES = pixels(2)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, **kind: Any) -> tuple[FakeOfGraphs, GraphBuilder]:
    fake = FakeOfGraphs(FakeRuntime(), **kind)
    for module in ("runtime", "driver_api"):
        monkeypatch.setattr(bindings, module, lambda: fake.runtime)
    status = DriverStatus(True, "", "580.95.05", "13.1", (Device("Fake GPU", "8.9", 1 << 30),))
    monkeypatch.setattr(engines, "driver_status", lambda: status)
    monkeypatch.setattr(engines, "find_tensorrt", lambda flavour: fake.trt)
    return fake, open_builder(fake.trt.flavour, RuntimeOptions(), folder / "layers")


def spoil(tensor: str) -> Any:
    """An engine computes a convolution wrongly, in whatever graph it is."""

    def kernels(model: Any) -> Any:
        names = {one.name for one in model.graph.initializer}
        return changed(model, tensor, np.negative) if tensor in names else model

    return kernels


@every_version
def test_every_version_gives_the_tensors_of_a_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    fake, builder = install(monkeypatch, tmp_path, **kind_of(version))
    known = values(DEEP, IMAGES)
    names = ["conv2", "relu5", "logits"]
    given = FedEngine(builder, "fp32", DEEP, (), names).run({"images": IMAGES}, {})
    assert list(given) == names
    for name, value in given.items():
        np.testing.assert_array_equal(value, known[name])
    assert fake.runtime.live == 0
    assert list(tmp_path.iterdir()) == []


def test_each_layer_is_given_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, builder = install(monkeypatch, tmp_path)
    fake.kernels_of = spoil("kernel2")
    known = values(DEEP, IMAGES)
    tensors = [name for name in known if name.startswith(("conv", "relu"))]
    own = FedEngine(builder, "fp32", DEEP, tensors, tensors).run({"images": IMAGES}, known)
    assert [name for name in tensors if not np.allclose(own[name], known[name], atol=1e-5)] == ["conv2"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_smallest_engine_that_differs_from_its_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    fake, builder = install(monkeypatch, tmp_path)
    fake.kernels_of = spoil("kernel3")
    model = classifier(precision, more_convolutions=6)
    known = values(model, IMAGES)
    judge = judge_on_engine(builder, precision, 20)
    part = reduce_graph(model, {name: value for name, value in known.items() if "_q" not in name}, judge)
    assert part is not None
    assert operators(part)[-1] == "Conv"
    assert list(part.expected) == ["conv3"]
    assert len(fake.built) < 25
    (tmp_path / "file.onnx").write_bytes(model.SerializeToString())
    record = write_reduced(
        tmp_path, part, f"build/tensorrt/{precision}.plan", {}, tmp_path / "file.onnx", builder.versions, engine=True
    )
    text = (tmp_path / record.files[-1]).read_text()
    assert "tensorrt 10.13.0, GPU Fake GPU" in text
    assert "trtexec --onnx=model.onnx" in text
    assert f"--shapes=\"'{next(iter(part.inputs))}':1x8x16x16\"" in text


def test_an_engine_that_is_right_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, builder = install(monkeypatch, tmp_path)
    assert reduce_graph(DEEP, values(DEEP, IMAGES), judge_on_engine(builder, "fp32", 60)) is None


def test_a_part_that_tensorrt_refuses_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, builder = install(monkeypatch, tmp_path)
    fake.fail = "build_serialized_network"
    with pytest.raises(ProjectError, match="build_serialized_network said no"):
        builder.run(DEEP, "fp32", {"images": IMAGES})
    assert reduce_graph(DEEP, values(DEEP, IMAGES), judge_on_engine(builder, "fp32", 60)) is None
    assert fake.runtime.live == 0


@pytest.mark.parametrize(
    "call", ["deserialize_cuda_engine", "create_execution_context", "set_input_shape", "execute_async_v3"]
)
def test_what_tensorrt_refuses_is_said_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    fake, builder = install(monkeypatch, tmp_path)
    fake.fail = call
    with pytest.raises(ProjectError, match=f"{call} said no"):
        builder.run(DEEP, "fp32", {"images": IMAGES})
    assert fake.runtime.live == 0


def test_without_a_gpu_or_a_tensorrt_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path)
    with pytest.raises(DeviceUnavailableError, match=r"1 GPU and runtime.device 3"):
        open_builder("tensorrt", RuntimeOptions(device=3), tmp_path)
    monkeypatch.setattr(engines, "find_tensorrt", lambda flavour: None)
    with pytest.raises(DeviceUnavailableError, match="TensorRT of the flavour rtx"):
        open_builder("rtx", RuntimeOptions(), tmp_path)
    monkeypatch.setattr(engines, "driver_status", lambda: DriverStatus(False, "no driver here", None, None, ()))
    with pytest.raises(DeviceUnavailableError, match="no driver here"):
        open_builder("tensorrt", RuntimeOptions(), tmp_path)


def test_the_real_builder_builds_parts(tmp_path: Path) -> None:
    """TensorRT-RTX builds without a GPU; what it builds runs on none here."""
    trt = find_tensorrt("rtx")
    if trt is None:
        pytest.skip("TensorRT-RTX is not installed")
    from export.onnx_passes.cut import cut, extract, with_outputs

    model = classifier("int8", more_convolutions=2)
    part = tmp_path / "int8.onnx"
    part.write_bytes(extract(model, ["relu_dq"], ["conv1"]).SerializeToString())
    assert len(memoryview(build_part(part, {"relu_dq": (2, 8, 16, 16)}, "int8", trt))) > 1000
    part.write_bytes(with_outputs(cut(model, ["relu", "conv1"]), ["relu", "conv1", "relu1"]).SerializeToString())
    shapes = {"images": (2, 16, 16, 3), "relu/given": (2, 8, 16, 16), "conv1/given": (2, 8, 16, 16)}
    assert len(memoryview(build_part(part, shapes, "int8", trt))) > 1000
