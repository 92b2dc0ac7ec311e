"""What `verify --reduce` leaves of files and of an engine with a fault planted in one convolution."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

from export.tensorrt.driver import DriverStatus
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.layer_report import LayerReport
from pipeline.artifacts.paths import KERAS, ONNX, REFERENCE, Artifacts
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.verification.layers import compare_engines, compare_files, engines, failing, half
from tests.conftest import Chain, tiny_recipe
from tests.fakes.engine import make_plan
from tests.fakes.keras_layers import FakeKerasLayers
from tests.pipeline.verification.layers.test_engines import install, spoil
from tests.tiny_onnx import classifier, pixels

BLOCK = "stage2_block1_2_conv"
PLAN = "build/tensorrt/int8.plan"


def plant(chain: Chain, precision: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = chain.root / ONNX[precision]
    model = onnx.load(path)
    name = f"{BLOCK}/Conv/weight{'/quantized' if precision == 'int8' else ''}"
    (tensor,) = (one for one in model.graph.initializer if one.name == name)
    weight = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(weight).astype(weight.dtype), tensor.name))
    path.write_bytes(model.SerializeToString())


def test_a_fault_in_each_file_is_one_convolution_that_shows_it_alone(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "IMAGES", 1)
    shutil.rmtree(chain.root / "build")
    plant(chain, "fp32", lambda weight: weight * 2)
    plant(chain, "fp16", lambda weight: np.full_like(weight, 6e4))
    plant(chain, "int8", np.negative)
    settings = load_recipe(chain.recipe, ["verify.reduce=true", "verify.layer_images=4"])
    found = compare_files.compare_files(Artifacts(chain.root), settings, tmp_path / "layers")
    assert [one.run for one in found.half] == [ONNX["fp16"], ONNX["int8"]]
    assert not found.half[0].finite
    assert "not all finite" in found.runs[1].note
    assert [part.run for part in found.reduced] == [*ONNX.values()]
    for part in found.reduced:
        assert part.layers == (BLOCK, "stage2_block1_2_bn")
        assert part.nodes == 1
    assert "NaN or infinite" in found.reduced[1].why
    folder = (tmp_path / "layers" / found.reduced[0].files[0]).parent
    lines = (folder / "README.txt").read_text().partition("import numpy")
    shown = subprocess.run(
        [sys.executable, "-I", "-c", lines[1] + lines[2]], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    _, most, largest = shown.split()
    assert float(most) > 0.1 * float(largest)


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], LayerReport]:
    """Compares three good files, whose Keras model is their graph, and an engine of the INT8 file."""
    root = tmp_path / "tiny"
    images = pixels(4)
    keras = FakeKerasLayers(classifier(more_convolutions=1))
    for precision, name in ONNX.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(classifier(precision, more_convolutions=1).SerializeToString())
    for name in (KERAS, REFERENCE):
        (root / name).parent.mkdir()
    (root / KERAS).write_bytes(b"the graph")
    np.savez(root / REFERENCE, pixels=images, logits=keras.outputs(images)["dense"])
    make_plan(root / PLAN, precision="int8", onnx_sha256=sha256_file(root / ONNX["int8"]))
    monkeypatch.setattr(compare_files, "open_keras_layers", lambda *arguments: keras)
    monkeypatch.setattr(compare_files, "read_card", lambda path: None)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path)))
    settings: Recipe = load_recipe(tmp_path / "tiny.yaml", ["verify.reduce=true"])
    return lambda: compare_files.compare_files(Artifacts(root), settings, tmp_path / "layers")


def test_a_wrong_kernel_of_an_engine_is_found_and_shrunk_against_the_file(
    report: Callable[[], LayerReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, builder = install(monkeypatch, tmp_path)
    fake.kernels_of = spoil("kernel1")
    for module in (compare_engines, failing):
        monkeypatch.setattr(module, "open_builder", lambda flavour, options, work: builder)
    found = report()
    *files, engine = found.runs
    assert [(file.run, file.first_below) for file in files] == [(name, "") for name in ONNX.values()]
    assert (engine.run, engine.first_below, len(engine.rows)) == (PLAN, "conv1", len(files[-1].rows))
    assert "not fused here" in engine.note
    assert PLAN in found.subjects
    (part,) = found.reduced
    assert (part.run, part.layers, part.nodes) == (PLAN, ("conv1",), 3)  # with the pair of its weights
    assert "computed by ONNX Runtime" in (tmp_path / "layers" / part.files[-1]).read_text()
    assert fake.runtime.live == 0


def test_without_a_gpu_an_engine_is_a_run_that_says_so(
    report: Callable[[], LayerReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "driver_status", lambda: DriverStatus(False, "no driver here", None, None, ()))
    found = report()
    engine = found.runs[-1]
    assert (engine.run, engine.rows, engine.note) == (PLAN, (), "not run: no driver here")
    assert PLAN not in found.subjects
    assert found.reduced == ()
    assert [one.run for one in found.half] == [ONNX["fp16"]]


def test_an_engine_of_another_file_is_not_compared(report: Callable[[], LayerReport], tmp_path: Path) -> None:
    (tmp_path / "tiny" / ONNX["int8"]).write_bytes(classifier("int8", channels=9).SerializeToString())
    engine = report().runs[-1]
    assert engine.rows == ()
    assert f"the ONNX file that {PLAN} was built from. Received: {PLAN} is stale" in engine.note
