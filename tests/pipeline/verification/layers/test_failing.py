"""What `verify --reduce` leaves of a tiny model's files with a fault planted in one convolution of each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.tensorrt.driver import DriverStatus
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.layer_report import LayerReport
from pipeline.artifacts.paths import ONNX, Artifacts
from pipeline.recipe.load import load_recipe
from pipeline.verification.layers import compare_engines, engines, failing, half
from pipeline.verification.layers import compare_files as compare_files_module
from pipeline.verification.layers.compare_files import compare_files
from tests.conftest import Chain
from tests.fakes.engine import make_plan
from tests.pipeline.verification.layers.test_engines import install, spoil

BLOCK = "stage2_block1_2_conv"
PLAN = "build/tensorrt/int8.plan"


@pytest.fixture
def report(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], LayerReport]:
    """Compares the files of the chain as they are then; the engine is one whose plan does not matter."""
    settings = load_recipe(chain.recipe, ["verify.reduce=true", "verify.layer_images=4"])
    monkeypatch.setattr(half, "IMAGES", 1)
    shutil.rmtree(chain.root / "build")
    digest = sha256_file(chain.root / ONNX["int8"])
    make_plan(chain.root / PLAN, precision="int8", onnx_sha256=digest)

    def compare() -> LayerReport:
        return compare_files(Artifacts(chain.root), settings, tmp_path / "layers")

    return compare


def plant(chain: Chain, precision: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = chain.root / ONNX[precision]
    model = onnx.load(path)
    (tensor,) = (one for one in model.graph.initializer if one.name == f"{BLOCK}/Conv/weight")
    weight = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(weight).astype(weight.dtype), tensor.name))
    path.write_bytes(model.SerializeToString())


def test_a_fault_in_each_file_is_one_convolution_that_shows_it_alone(
    chain: Chain, report: Callable[[], LayerReport], tmp_path: Path
) -> None:
    plant(chain, "fp32", lambda weight: weight * 2)
    plant(chain, "fp16", lambda weight: np.full_like(weight, 6e4))
    plant(chain, "int8", np.negative)
    found = report()
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


def test_a_wrong_kernel_of_an_engine_is_found_and_shrunk_against_the_file(
    chain: Chain, report: Callable[[], LayerReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_files_module, "list_files", lambda artifacts: [(ONNX["int8"], "int8")])
    fake, builder = install(monkeypatch, tmp_path)
    fake.kernels_of = spoil(f"{BLOCK}/Conv/weight")
    for module in (compare_engines, failing):
        monkeypatch.setattr(module, "open_builder", lambda flavour, options, work: builder)
    found = report()
    file, engine = found.runs
    assert file.first_below == ""
    assert (engine.run, engine.first_below, len(engine.rows)) == (PLAN, "stage2_block1_2_bn", len(file.rows))
    assert "not fused here" in engine.note
    assert PLAN in found.subjects
    (part,) = found.reduced
    assert (part.run, part.layers, part.nodes) == (PLAN, (BLOCK, "stage2_block1_2_bn"), 3)  # with the pair of weights
    assert "computed by ONNX Runtime" in (tmp_path / "layers" / part.files[-1]).read_text()
    assert fake.runtime.live == 0


def test_without_a_gpu_an_engine_is_a_run_that_says_so(
    chain: Chain, report: Callable[[], LayerReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_files_module, "list_files", lambda artifacts: [(ONNX["int8"], "int8")])
    monkeypatch.setattr(engines, "driver_status", lambda: DriverStatus(False, "no driver here", None, None, ()))
    found = report()
    engine = found.runs[-1]
    assert (engine.run, engine.rows, engine.note) == (PLAN, (), "not run: no driver here")
    assert PLAN not in found.subjects
    assert found.reduced == ()
