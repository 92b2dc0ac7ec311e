"""One function opens every file."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from export.preprocessing import PreprocessingSpec
from pipeline.errors import RunnerError
from pipeline.runners.keras import KerasRunner
from pipeline.runners.onnxruntime import OnnxRunner
from pipeline.runners.open import BACKENDS, open_runner
from pipeline.runners.options import RuntimeOptions
from pipeline.runners.tensorrt import TensorRTRunner
from tests import fake_onnxruntime, tiny_onnx
from tests.fake_engine import make_plan


@dataclass(frozen=True)
class Card:
    """Of `pipeline.card.ModelCard`, what a Keras model needs."""

    preprocessing: PreprocessingSpec = PreprocessingSpec.from_mode("tf")  # noqa: RUF009
    output: str = "logits"


def test_each_backend_has_its_runner(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "x.plan")
    for backend in BACKENDS:
        runner = open_runner(plan, backend, card=Card())  # type: ignore[arg-type]
        assert runner.backend == backend


def test_what_each_is_opened_with(tmp_path: Path) -> None:
    plan, runtime = make_plan(tmp_path / "x.plan"), RuntimeOptions(device=1, graphs=False)
    engine = open_runner(plan, "tensorrt", "fp16", runtime)
    assert isinstance(engine, TensorRTRunner)
    assert engine.options == runtime
    onnx = open_runner(plan, "onnxruntime-cuda", "int8", runtime, at_once=300)
    assert isinstance(onnx, OnnxRunner)
    assert (onnx.precision, onnx.max_batch) == ("int8", 300)
    assert open_runner(plan, "onnxruntime").max_batch == 256
    keras = open_runner(plan, "keras", card=Card(), at_once=65)  # type: ignore[arg-type]
    assert isinstance(keras, KerasRunner)
    assert keras.max_batch == 65


@pytest.mark.parametrize("exact", [True, False])
def test_an_exact_run_is_one_without_graph_optimizations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    runtime = fake_onnxruntime.install(monkeypatch, fake_onnxruntime.FakeOnnxRuntime())
    tiny_onnx.write(tmp_path / "int8.onnx", "int8")
    with open_runner(tmp_path / "int8.onnx", "onnxruntime", "int8", exact=exact):
        assert runtime.opened[-1].optimized is not exact


def test_what_cannot_be_opened_is_refused() -> None:
    with pytest.raises(RunnerError, match="card of the Keras model"):
        open_runner(Path("model.keras"), "keras")
    with pytest.raises(RunnerError, match="'tpu'"):
        open_runner(Path("x"), "tpu")
