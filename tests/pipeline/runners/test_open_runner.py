"""One function opens every file."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from benchmarks.scenarios import INCLUDES
from export.errors import RunnerError
from export.files import ROOT
from export.preprocessing import PreprocessingSpec
from pipeline.artifacts.benchmark_report import BenchmarkRow
from pipeline.artifacts.code_key import closure
from pipeline.artifacts.parity_report import run_name
from pipeline.recipe.runtime import RuntimeOptions
from pipeline.runners.keras import open_keras
from pipeline.runners.onnxruntime import OnnxRunner
from pipeline.runners.open import BACKENDS, open_runner
from pipeline.runners.tensorrt.runner import TensorRTRunner
from pipeline.serving import candidates
from pipeline.serving.candidates import PREFERENCE
from tests.fakes.engine import make_plan


@dataclass(frozen=True)
class Card:
    """Of `pipeline.models.model_card.ModelCard`, what a Keras model needs."""

    preprocessing: PreprocessingSpec = PreprocessingSpec.from_mode("tf")  # noqa: RUF009
    output: str = "logits"


def test_each_backend_has_its_runner(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "x.plan")
    for backend in BACKENDS:
        runner = open_runner(plan, backend)
        assert runner.backend == backend


def test_every_list_of_backends_has_each_of_them() -> None:
    timed = set(get_args(get_type_hints(BenchmarkRow)["backend"]))
    assert set(INCLUDES) == timed == {"keras", *BACKENDS}, "benchmarks/scenarios.py, and the row that holds it"
    assert set(PREFERENCE) == set(candidates.BACKENDS) <= set(BACKENDS), "pipeline/serving/candidates.py"
    runs = [run_name("model.onnx", backend) for backend in BACKENDS if backend != "tensorrt"]
    assert len(set(runs)) == len(runs), "answers of one file by two backends are told apart by these names"
    assert run_name("model.onnx", "another") != "model.onnx"


def test_what_each_is_opened_with(tmp_path: Path) -> None:
    plan, runtime = make_plan(tmp_path / "x.plan"), RuntimeOptions(device=1, graphs=False)
    engine = open_runner(plan, "tensorrt", "fp16", runtime)
    assert isinstance(engine, TensorRTRunner)
    assert engine.options == runtime
    onnx = open_runner(plan, "onnxruntime-cuda", "int8", runtime, at_once=300)
    assert isinstance(onnx, OnnxRunner)
    assert (onnx.precision, onnx.max_batch) == ("int8", 300)
    assert open_runner(plan, "onnxruntime").max_batch == 256


def test_a_keras_model_needs_its_card() -> None:
    runner = open_keras(Path("model.keras"), Card(), ("Lambda",), 65)  # type: ignore[arg-type]
    assert (runner.preprocessing, runner.max_batch) == (Card().preprocessing, 65)
    with pytest.raises(RunnerError, match="card of the Keras model"):
        open_keras(Path("model.keras"), None, (), 1)


def test_who_opens_exported_files_imports_nothing_that_reads_keras_files() -> None:
    found = closure("pipeline.runners.open", ROOT)
    assert "pipeline/runners/onnxruntime.py" in found
    assert not {"pipeline/runners/keras.py", "pipeline/keras_files/load.py"} & found.keys()


def test_another_backend_is_refused() -> None:
    with pytest.raises(RunnerError, match="'tpu'"):
        open_runner(Path("x"), "tpu")
