"""`verify --layers`: the record, the table, and what is said where nothing can be compared."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from onnx import numpy_helper

from export.errors import ProjectError
from export.onnx_passes.file import load_model, save_model
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.layer_report import LayerReport, LayerRow, LayerRun, read_layers
from pipeline.artifacts.manifest import read_manifest
from pipeline.artifacts.paths import KERAS, LAYERS, ONNX, TENSORS
from pipeline.artifacts.tensor_changes import read_changes
from pipeline.cli.commands import main
from pipeline.recipe.load import load_recipe
from pipeline.stages.layers import STAGE
from pipeline.verification.layers.compare_files import layer_table
from pipeline.workflow.context import Context
from tests.conftest import Chain
from tests.export.tiny_graphs import floats, graph
from tests.pipeline.workflow.test_stage_inputs import only_declared
from tests.stage_parts import run_stage

FEW = ("--set", "verify.layer_images=6")


def context_of(chain: Chain) -> Context:
    return Context(load_recipe(chain.recipe, FEW[1:]), chain.recipe, chain.artifacts, FEW[1:])


def test_layers_are_compared_after_the_verdict_and_only_once(chain: Chain, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(chain.arguments("verify", "--reduce", *FEW, "--json")) == 0
    captured = capfd.readouterr()
    first = json.loads(captured.out.splitlines()[-1])
    assert first["stages"]["layers"] == {"images": 6, "first_below": {}, "status": "done"}
    assert "nothing fails, so nothing is cut out" in captured.err
    # What was made with --reduce has all that --layers asks for.
    assert main(chain.arguments("verify", "--layers", *FEW, "--json")) == 0
    captured = capfd.readouterr()
    assert "verdict   pass, on " in captured.err, "also where it is up to date"
    again = json.loads(captured.out.splitlines()[-1])
    assert {name: stage["status"] for name, stage in again["stages"].items()} == dict.fromkeys(
        ("verify", "layers"), "up to date"
    )
    assert main(chain.arguments("verify", "--layers", "--set", "verify.layer_images=7", "--explain")) == 0
    out = capfd.readouterr().out
    assert "verify    up to date" in out
    assert "layers    would run" in out
    assert "layer_images" in out

    report = read_layers(chain.root / LAYERS)
    assert report.images == 6
    assert report.subjects == {name: sha256_file(chain.root / name) for name in (KERAS, *ONNX.values())}
    files, engines = report.runs[: len(ONNX)], report.runs[len(ONNX) :]
    assert [run.run for run in files] == [*ONNX.values()]
    assert all(run.note.startswith("not run: ") and not run.rows for run in engines)  # without a GPU
    for run in files:
        assert [row.layer for row in run.rows] == [*report.kinds]
        assert run.first_below == ""
        assert all(row.finite and row.cosine > 0.9 for row in run.rows)
    fp32, _, int8 = files
    assert min(row.own_sqnr_db or 200 for row in fp32.rows) > 100
    assert any(row.saturated is not None and row.range_used > 0.1 for row in int8.rows)
    folded = {name: why for name, why in report.without_tensor.items() if name.startswith(("input", "stem"))}
    assert folded == dict.fromkeys(("input", "stem_conv"), "folded into stem_bn")  # caffe's channel order is in weights
    table = layer_table(report)
    assert f"{ONNX['int8']}: no layer below 15 dB of its own" in table
    assert len(table.splitlines()) <= 5 * len(ONNX) + len(engines) + 1, "the worst three where none is bad"


def test_the_table_has_ten_layers_of_a_run_with_a_bad_one_and_no_share_of_fp16_that_says_nothing() -> None:
    rows = tuple(
        LayerRow(f"layer{index}", "t", 50.0, 50.0 + index, 0.999, True, 0.0, 0.0004 + 0.5 * (index == 1), 26.0)
        for index in range(20)
    )
    good = LayerRun("a.fp16.onnx", "fp16", 45.0, rows, "", 1.0)
    report = LayerReport({}, 4, {}, {}, (good, replace(good, run="b.fp16.onnx", first_below="layer0")))
    table = layer_table(report).splitlines()
    assert [sum("layer" in line.split()[0] for line in part[2:]) for part in (table[:5], table[5:])] == [3, 10]
    assert len(table) == 5 + 12
    assert "0.0 %" not in table[2].replace("0.00 %", "")
    assert table[3].endswith("50.0 %")
    as_int8 = replace(report, runs=(replace(good, precision="int8"),))
    assert "0.0 %" in layer_table(as_int8).splitlines()[2], "of an INT8 scale it is a fault"


def test_of_what_it_declares_a_file_that_cannot_be_compared_is_named_and_the_others_go_on(
    chain: Chain, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    other = graph([("Cast", ["x"], "f", {"to": 1}), ("Mul", ["f", "two"], "y", {})], {"two": floats(1, 3, 5, 5)},
                  x=("batch", 3, 5, 5), dtype=2)  # fmt: skip
    save_model(other, chain.root / ONNX["fp16"])
    int8 = load_model(chain.root / ONNX["int8"])
    # The first inner activation of a block that is quantized: which layers stay in float is the search's choice.
    scale = next(t for t in int8.graph.initializer if t.name.endswith("_1_relu/Relu_0/scale"))
    scale.CopyFrom(numpy_helper.from_array(np.float32(2.0**-10), scale.name))  # far too small
    save_model(int8, chain.root / ONNX["int8"])
    context = context_of(chain)
    (chain.root / STAGE.name).mkdir()
    only_declared(chain, STAGE)
    result = run_stage(STAGE, context, tmp_path)
    fp16 = next(run for run in read_layers(tmp_path / "layers.json").runs if run.precision == "fp16")
    assert fp16.rows == ()
    assert "Expected" in fp16.note
    assert f"the layers of {ONNX['fp16']} are not compared: Expected" in caplog.text
    reader = scale.name.replace("_1_relu/Relu_0/scale", "_2_bn")
    assert result.first_below == {ONNX["int8"]: reader}  # the layer that reads the tensor


def test_keras_is_needed(chain: Chain, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ProjectError, match=r"Expected Keras, whose layers are compared\. Received: it is not"):
        run_stage(STAGE, context_of(chain), tmp_path)


def test_what_tensors_hold_is_written_and_recorded(made_chain: Chain) -> None:
    changes = read_changes(made_chain.root / TENSORS)
    # Held-out images choose whether the eighth bit helps; channels are equalized, or biases corrected, either way.
    shifted = json.loads((made_chain.root / "quantize" / "calibration.json").read_text())["shift"]["shifted"]
    assert changes
    assert all(changes[name].offsets.max() > 0 for name in shifted)
    assert TENSORS.partition("/")[2] in read_manifest(made_chain.root / "quantize").outputs
