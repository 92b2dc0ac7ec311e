"""The quantize stage on the tiny recipe: which images decide what, and what it leaves behind."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from export.int8 import search
from export.int8.choice import TIE_DB
from export.int8.scales import METHODS, Scales
from export.int8.sensitivity import Selection
from export.metrics.confidence import wilson_interval
from export.onnx_passes.graph import op_counts, opset
from export.records import read_record
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.paths import ONNX, TENSORRT8
from pipeline.data.dataset import load_image_set
from pipeline.quantization import quantize
from pipeline.quantization.quantize import missed_budget
from pipeline.recipe.load import load_recipe
from tests.conftest import Chain, copy_chain


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def highest(share: float, images: int) -> float:
    """The upper end of a share's 95 % interval."""
    return wilson_interval(round(share * images), images)[1]


@pytest.fixture(scope="module")
def older(finished_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """With the models for TensorRT 8.6."""
    chain = copy_chain(finished_chain, tmp_path_factory.mktemp("older"))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert chain.run("quantize", *QUICK, "--set", "quantize.tensorrt8=true") == 0
    line = "wrote model.fp16.onnx, model.int8.onnx; for TensorRT 8.6 model.fp16-trt8.onnx, model.int8-trt8.onnx\n"
    assert said.getvalue().count(line) == 1
    return chain


@pytest.fixture(scope="module")
def measured(finished_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Every layer measured, with scales as they are and no correction of any kind."""
    chain = copy_chain(finished_chain, tmp_path_factory.mktemp("measured"))
    plain = ("quantize.method=minmax", "quantize.equalize=false", "quantize.bias_correction=false")
    budget = ("verify.thresholds.int8.top1_agreement=0.5", "verify.thresholds.int8.sqnr_db=5")
    settings = (*plain, *budget, "quantize.sensitivity=always", "quantize.sensitivity_images=6")
    assert chain.run("quantize", *(part for value in settings for part in ("--set", value))) == 0
    return chain


def test_the_default_tries_every_method(finished_chain: Chain) -> None:
    folder = finished_chain.root / "quantize"
    report = read(folder / "calibration.json")
    assert set(report["methods"]) == set(METHODS)
    assert report["method"] == read(folder / "scales.json")["method"]
    # The images decide (export/int8/choice.py), no longer the SQNR of all logits together.
    chosen, rows = report["methods"][report["method"]], list(report["methods"].values())
    held_out = report["held_out_images"]
    left = [row for row in rows if row["sqnr_db"] >= 20 and highest(row["top1_agreement"], held_out) >= 0.99] or rows
    both = [(row["median_db"] + row["worst_db"]) / 2 for row in left]
    assert chosen in left
    assert (chosen["median_db"] + chosen["worst_db"]) / 2 >= max(both) - TIE_DB
    assert report["bias_correction"].keys() == {"used", "before", "after"}
    assert report["fp16"]["rounding"]["chosen"] in ("nearest", "mean")
    assert report["fp16"]["kept_fp32"] == {}
    assert (report["equalized_activations"] > 0) is report["equalization"]["used"], "or it is undone"
    # Which way it goes depends on the last bit of the training, so on the processor.
    whole = report["all_int8"]
    met = whole["sqnr_db"] >= 20 and whole["top1_agreement"] >= 0.99
    assert (folder / "sensitivity.csv").exists() is not met, "only measured where the budget is missed"
    assert bool(report["kept"]) is not met
    assert report["convolutions"] - report["int8_convolutions"] <= len(report["kept"])
    if met:
        assert report["budget_met"] is True


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_models_for_tensorrt_8_are_the_same_at_opset_17(older: Chain, precision: str) -> None:
    newer, model = (onnx.load(older.root / names[precision]) for names in (ONNX, TENSORRT8))
    assert (opset(newer) >= 19, opset(model)) == (True, 17)
    assert opset(onnx.load(older.root / ONNX["fp32"])) == 17, "which 8.6 reads as well"
    onnx.checker.check_model(model, full_check=True)
    counts = [op_counts(one) for one in (newer, model)]
    assert counts[0]["Conv"] == counts[1]["Conv"]
    if precision == "int8":
        assert counts[0]["DequantizeLinear"] == counts[1]["DequantizeLinear"] > 20
        codes = [tensor for tensor in newer.graph.initializer if tensor.name.endswith("/quantized")]
        more = counts[1]["QuantizeLinear"] - counts[0]["QuantizeLinear"]
        assert more == len(codes) > 10, "TensorRT 8.6 rounds weights itself; the newer file holds their codes"
        assert onnx.TensorProto.FLOAT16 not in weights(model).values()
    else:
        assert weights(newer) == weights(model)
        assert onnx.TensorProto.FLOAT16 in weights(model).values()


def weights(model: onnx.ModelProto) -> dict[tuple[str, bytes], int]:
    """The type of the weights of each layer that has some, by its name and their values."""
    table = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    read = [(node.name, table[node.input[1]]) for node in nodes if node.input[1] in table]
    return {(name, numpy_helper.to_array(tensor).tobytes()): tensor.data_type for name, tensor in read}


def test_the_models_for_tensorrt_8_are_judged_packed_and_taken_back(
    older: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = (*QUICK, "--set", "quantize.tensorrt8=true")
    for verb in ("build", "verify", "infer", "report"):
        assert older.run(verb, *key) == 0, verb
    names = set(TENSORRT8.values())
    hops = read(older.root / "verify" / "parity.json")["hops"]
    verdicts = {(hop["candidate"], hop["kind"], hop["verdict"]) for hop in hops if hop["candidate"] in names}
    assert verdicts == {(name, kind, "pass") for name in names for kind in ("from_keras", "step", "consistency")}
    capsys.readouterr()
    assert older.run("bundle", "-o", str(tmp_path / "tiny.tar"), *key) == 0
    said = capsys.readouterr().err
    assert "On the other machine: make install-gpu && .venv-gpu/bin/python -m pipeline unpack tiny.tar\n" in said
    assert "FP16 and INT8 for TensorRT 10 and later, and for 8.6. The steps for 8.6 and for a Jetson differ" in said
    with tarfile.open(tmp_path / "tiny.tar") as archive:
        assert names <= set(archive.getnames())
    assert older.run("quantize", *QUICK) == 0
    assert not list(older.root.glob("quantize/*trt8*")), "no stale file is left"
    assert older.run("verify", *QUICK) == 0
    assert not names & read(older.root / "verify" / "parity.json")["subjects"].keys()


def test_the_last_lines_say_how_int8_was_made_and_how_close_it_is(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert chain.run("quantize", *QUICK, "--set", "quantize.shift=always") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  INT8")]
    report = read(chain.root / "quantize" / "calibration.json")
    rounded = "by second order" if report["rounding"]["used"] else "to nearest"
    shifted, convolutions, close = report["shift"], report["convolutions"], report["all_int8"]
    assert shifted["shifted"], "else nothing is counted"
    assert lines == [
        f"  INT8: scales by minmax, {len(shifted['shifted'])} of {shifted['quantized']} tensors shifted, "
        f"weights rounded {rounded}, {convolutions} of {convolutions} convolutions",
        f"  INT8 on {report['held_out_images']} held-out images: SQNR {close['sqnr_db']:.1f} dB (median image "
        f"{close['median_db']:.1f} dB, worst {close['worst_db']:.1f} dB), agreement {close['top1_agreement']:.2%}",
    ]


def test_scales_know_what_they_are_of(finished_chain: Chain) -> None:
    scales = read_record(Scales, finished_chain.root / "quantize" / "scales.json", remedy="")
    assert scales.key["model_sha256"] == sha256_file(finished_chain.root / "export" / "model.onnx")
    assert scales.key["preprocessing"]["mode"] == "caffe"
    assert scales.key["quantize"]["min_images"] == 40
    report = read(finished_chain.root / "quantize" / "calibration.json")
    assert scales.images == report["scale_images"]


def test_images_that_judge_give_no_scales(finished_chain: Chain) -> None:
    used = read(finished_chain.root / "quantize" / "images.json")
    hashes = {part: {row["sha256"] for row in used[part]} for part in ("calibration", "held_out")}
    splits = {
        name: {sample.sha256 for sample in samples}
        for name, samples in load_image_set(load_recipe(finished_chain.recipe).data).splits.items()
    }
    assert not hashes["calibration"] & hashes["held_out"]
    assert hashes["calibration"] | hashes["held_out"] == splits["calibration"]
    for other in ("train", "validation", "test"):
        assert not (hashes["calibration"] | hashes["held_out"]) & splits[other], other
    report = read(finished_chain.root / "quantize" / "calibration.json")
    assert report["held_out_images"] == len(used["held_out"]) == round(0.25 * len(splits["calibration"]))
    assert report["scale_images"] == len(used["calibration"])


def test_held_out_images_show_every_class(finished_chain: Chain) -> None:
    used = read(finished_chain.root / "quantize" / "images.json")
    assert {Path(row["name"]).parent.name for row in used["held_out"]} == {"blue", "green", "red", "yellow"}


def test_one_method_is_taken_as_it_is(measured: Chain) -> None:
    report = read(measured.root / "quantize" / "calibration.json")
    assert (report["method"], list(report["methods"])) == ("minmax", ["minmax"])
    assert report["equalized_activations"] == 0
    assert report["bias_correction"] is None
    assert read(measured.root / "quantize" / "scales.json")["method"] == "minmax"


def test_every_layer_is_in_the_table(measured: Chain) -> None:
    folder = measured.root / "quantize"
    with (folder / "sensitivity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    noises = [float(row["noise"]) for row in rows]
    assert noises == sorted(noises, reverse=True)
    placed = {row["node"] for row in read(folder / "placement.json")["nodes"] if row["precision"] == "int8"}
    assert placed <= {row["node"] for row in rows}
    assert sum(row["op"] == "Conv" for row in rows) == read(folder / "calibration.json")["convolutions"]
    assert {row["kept"] for row in rows} == {"int8"}
    assert "sensitivity.csv" in read(folder / "manifest.json")["outputs"]
    assert not list(folder.glob("*.png")), "the report draws it"


def test_too_few_images_name_the_key(chain: Chain, capfd: pytest.CaptureFixture[str]) -> None:
    before = sha256_file(chain.root / "quantize" / "scales.json")
    assert chain.run("quantize", "--set", "quantize.min_images=5000") == 2
    assert "quantize.min_images" in capfd.readouterr().err
    assert sha256_file(chain.root / "quantize" / "scales.json") == before


QUICK = (
    *("--set", "quantize.method=minmax", "--set", "quantize.sensitivity=never"),
    *("--set", "quantize.equalize=false", "--set", "quantize.bias_correction=false"),
)


@pytest.mark.parametrize("former", [True, False])
def test_a_full_disk_leaves_nothing_half_written(chain: Chain, monkeypatch: pytest.MonkeyPatch, former: bool) -> None:
    folder = chain.root / "quantize"
    if not former:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    before = {path.name: sha256_file(path) for path in folder.iterdir()} if former else None
    real = quantize.write_atomic

    def full(path: Path, data: bytes | str) -> None:
        if path.name == "scales.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    monkeypatch.setattr(quantize, "write_atomic", full)
    assert chain.run("quantize", *QUICK) != 0
    assert not [path for path in chain.root.iterdir() if ".tmp-" in path.name or path.name.endswith(".former")]
    assert ({path.name: sha256_file(path) for path in folder.iterdir()} if folder.exists() else None) == before
    monkeypatch.setattr(quantize, "write_atomic", real)
    assert chain.run("quantize", *QUICK) == 0
    assert (folder / "scales.json").exists()


def test_what_fp16_cannot_hold_stays_fp32_whatever_the_budget_keeps(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers are kept for a budget that none meets; the one that overflows FP16 must not become FP16 by that."""
    model = onnx.load(chain.root / "export" / "model.onnx")
    convs = [node.name for node in model.graph.node if node.op_type == "Conv"]
    monkeypatch.setattr(search, "unfit_for_fp16", lambda *_: {convs[0]: "values up to 1,000,000"})
    more = ("quantize.sensitivity=auto", "quantize.sensitivity_images=2", "quantize.max_kept=1.0")
    settings = (*more, "verify.thresholds.int8.sqnr_db=300")
    assert chain.run("quantize", *QUICK, *(part for value in settings for part in ("--set", value))) == 0
    folder = chain.root / "quantize"
    placed = {row["node"]: row for row in read(folder / "placement.json")["nodes"]}
    assert placed[convs[0]]["precision"] == "fp32"
    assert placed[convs[0]]["why"] == "values up to 1,000,000"
    assert "fp16" in {placed[name]["precision"] for name in convs}
    report = read(folder / "calibration.json")
    assert report["fp16"]["kept_fp32"] == {convs[0]: "values up to 1,000,000"}
    assert report["budget_met"] is False
    assert report["mixed"]["sqnr_db"] > report["all_int8"]["sqnr_db"]
    with (folder / "sensitivity.csv").open(newline="") as file:
        kept = {row["node"]: row["kept"] for row in csv.DictReader(file)}
    assert kept[convs[0]] == "fp32"
    assert {name for name, precision in kept.items() if precision == "int8"} == set(kept) - set(report["kept"])


def test_a_budget_that_is_met_is_met_by_the_model_that_is_written(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agreement may rise while SQNR falls a little: the layers that the budget needs are kept all the same."""
    real = search.select_layers

    def met_at_a_lower_sqnr(*arguments: object) -> Selection:
        selection = real(*arguments)
        return replace(selection, met=True, comparison=replace(selection.comparison, sqnr_db=1.0))

    monkeypatch.setattr(search, "select_layers", met_at_a_lower_sqnr)
    settings = ("quantize.sensitivity=auto", "quantize.sensitivity_images=2", "verify.thresholds.int8.sqnr_db=300")
    assert chain.run("quantize", *QUICK, *(part for value in settings for part in ("--set", value))) == 0
    report = read(chain.root / "quantize" / "calibration.json")
    assert report["budget_met"] is True
    assert report["kept"]
    assert report["mixed"]["sqnr_db"] == 1.0
    placed = {row["node"]: row["precision"] for row in read(chain.root / "quantize" / "placement.json")["nodes"]}
    assert {placed[name] for name in report["kept"]} == {"fp16"}


@pytest.mark.parametrize(("asked", "share", "met"), [(1.0, 1.0, True), (300.0, 0.0, False)])
def test_where_fp16_misses_its_threshold_the_dearest_layers_stay_fp32(
    chain: Chain, asked: float, share: float, met: bool
) -> None:
    """As many decibels more than it has can be had; more than there are can not, and no Conv may be kept."""
    whole = read(chain.root / "quantize" / "calibration.json")
    before, margin = whole["fp16"], 1.0 + 8.0 / math.sqrt(whole["held_out_images"])
    assert (before["budget_met"], before["kept_fp32"]) == (True, {})
    best = max(before["rounding"][name]["sqnr_db"] for name in ("nearest", "mean"))
    limit = best + asked - margin  # more, the fewer images are held out
    budget = ("verify.thresholds.int8.top1_agreement=0", "verify.thresholds.int8.sqnr_db=0")
    more = ("quantize.sensitivity=auto", "quantize.sensitivity_images=2", f"quantize.max_kept_fp32={share}")
    settings = ("quantize.tensorrt8=true", *more, *budget, f"verify.thresholds.fp16.sqnr_db={limit}")
    assert chain.run("quantize", *QUICK, *(part for value in settings for part in ("--set", value))) == 0
    report = read(chain.root / "quantize" / "calibration.json")["fp16"]
    assert report["budget"] == f"agreement of at least 99.90%, SQNR of at least {limit + margin:.1f} dB"
    assert report["budget_met"] is met
    if met:
        assert report["kept"]
        assert report["mixed"]["sqnr_db"] >= best + asked
    # Without a Conv it depends on the CPU's arithmetic whether any layer helps; what does not help is not kept.
    # That other layers are not limited by the share is held in tests/export/int8/test_sensitivity.py.
    assert bool(report["kept_fp32"]) == bool(report["kept"])
    assert report["kept_fp32"] or not met
    if report["kept_fp32"]:
        assert report["mixed"]["sqnr_db"] > best
    model, older = (onnx.load(chain.root / names["fp16"]) for names in (ONNX, TENSORRT8))
    types = {name: kind for (name, _), kind in weights(model).items()}
    single = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}
    assert single == types.keys() & set(report["kept_fp32"])
    if not met:
        assert not single & {node.name for node in model.graph.node if node.op_type == "Conv"}
    assert weights(older) == weights(model)
    casts = [[(node.op_type, node.name) for node in one.graph.node] for one in (model, older)]
    assert casts[0] == casts[1], "the same layers stay FP32"
    assert all("of the FP16 noise" in why for why in report["kept_fp32"].values())


def test_fp16_is_left_as_it_is_where_no_layer_may_be_measured(chain: Chain) -> None:
    settings = ("verify.thresholds.fp16.sqnr_db=300",)
    assert chain.run("quantize", *QUICK, *(part for value in settings for part in ("--set", value))) == 0
    report = read(chain.root / "quantize" / "calibration.json")["fp16"]
    assert (report["budget_met"], report["kept_fp32"]) == (False, {})


def test_a_warning_about_many_tensors_is_one_line_with_five_names(
    chain: Chain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scales, "smallest", property(lambda scales: list(scales.scales)))
    monkeypatch.setattr(
        search, "unfit_for_fp16", lambda model, limits: {f"node{number}": "too large" for number in range(47)}
    )
    capsys.readouterr()
    assert chain.run("quantize", "--force") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    dead = [line for line in warnings if "the smallest scale" in line]
    assert len(dead) == 1, "not once for each method that was tried"
    assert dead[0].count(", ") == 4
    assert dead[0].split()[-3:][0] == "and"
    (unfit,) = [line for line in warnings if "FP32" in line and "too large" in line]
    assert "47 layers stay FP32: node0: too large; " in unfit
    assert unfit.endswith("and 42 more")


def test_what_is_missed_is_told_with_what_can_still_be_raised() -> None:
    assert missed_budget("int8", "SQNR", "quantize.max_kept", 0.1) == (
        "INT8 misses verify.thresholds.int8 on held-out images (SQNR). To keep more convolutions in FP16 "
        "raise quantize.max_kept (now 0.1)."
    )
    said = missed_budget("fp16", "SQNR", "quantize.max_kept_fp32", 1.0)
    assert "FP16 misses" in said
    assert "All convolutions may stay in FP32 already (quantize.max_kept_fp32): add calibration images" in said
    assert "raise" not in said
