"""``verify`` for machines and for files of other tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
from PIL import Image

from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.paths import CALIBRATION_IMAGES, ONNX, PARITY
from tests.conftest import Chain, make_colour_images
from tests.own_export import theirs


def line_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


def content(folder: Path) -> dict[str, str]:
    return {str(path): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def test_files_of_other_tools_are_judged_on_a_folder_and_nothing_is_written(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, photos = finished_chain.root / ONNX["fp32"], make_colour_images(tmp_path / "photos", count=5, seed=99)
    logits = theirs(source, tmp_path / "logits.onnx")
    probabilities = theirs(source, tmp_path / "probabilities.onnx", "probabilities")
    before, junit = content(finished_chain.root), tmp_path / "theirs.xml"
    options = ["--onnx", str(logits), "--onnx", str(probabilities), "--images", str(photos)]
    assert finished_chain.run("verify", *options, "--junit", str(junit), "--json") == 0
    captured = capsys.readouterr()
    line = json.loads(captured.out.splitlines()[-1])
    assert (line["verdict"], line["images"], line["hints"]) == ("pass", 20, [])
    compared = {hop["candidate"]: hop for hop in line["hops"] if hop["kind"] == "from_keras"}
    assert set(compared) == {str(logits), str(probabilities)}
    assert "logarithms of probabilities" in compared[str(probabilities)]["note"]
    assert all(hop["accuracy_candidate"] is None for hop in compared.values())
    assert "have no labels" in captured.err
    assert content(finished_chain.root) == before
    assert len(list(ElementTree.parse(junit).iter("testcase"))) == len(line["hops"])
    tables = json.loads((finished_chain.root / CALIBRATION_IMAGES).read_text())
    shutil.copy(finished_chain.images / tables["calibration"][0]["name"], photos / "known.png")
    assert finished_chain.run("verify", *options) == 2
    assert "known.png" in capsys.readouterr().err


def test_a_fault_in_their_file_fails_with_a_cause(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = theirs(finished_chain.root / ONNX["fp32"], tmp_path / "wrong.onnx", factor=2.0)
    junit = tmp_path / "wrong.xml"
    assert finished_chain.run("verify", "--onnx", str(wrong), "--junit", str(junit), "--json") == 1
    captured = line_of(capsys)
    assert captured["verdict"] == "fail"
    (hint,) = captured["hints"][:1]
    assert hint["run"] == str(wrong)
    failures = [one.text or "" for one in ElementTree.parse(junit).iter("failure")]
    assert hint["text"] in failures[0]


@pytest.mark.parametrize("fault", ["padding", "wiring"])
def test_a_layer_of_their_file_is_named_whatever_its_nodes_are_called(
    fault: str, finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = theirs(finished_chain.root / ONNX["fp32"], tmp_path / "wrong.onnx")
    model = onnx.load(str(wrong))
    nodes = {node.name: node for node in model.graph.node}
    if fault == "padding":
        (pads,) = (one for one in nodes["stage2_block2_1_conv/Conv"].attribute if one.name == "pads")
        pads.ints[:] = [0, 0, 2, 2]
    else:
        nodes["stage1_block3_add/Add"].input[1] = nodes["stage1_block2_add/Add"].input[1]
    names = {name: f"t{i}" for i, node in enumerate(model.graph.node) for name in node.output if name != "logits"}
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    onnx.save(model, str(wrong))
    assert finished_chain.run("verify", "--onnx", str(wrong), "--layers", "--json") == 1
    captured = capsys.readouterr()
    line = json.loads(captured.out.splitlines()[-1])
    layer, tensor_of = {
        "padding": ("stage2_block2_1_conv", "stage2_block2_1_bn"),
        "wiring": ("stage1_block3_add", "stage1_block3_add"),
    }[fault]
    assert (line["hints"][0]["cause"], line["hints"][0]["layer"]) == (fault, layer)
    assert [run["first_below"] for run in line["layers"]] == [tensor_of]
    assert f"first layer below 90 dB of its own: {tensor_of}" in captured.err


def test_a_second_softmax_in_their_file_is_named(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = theirs(finished_chain.root / ONNX["fp32"], tmp_path / "twice.onnx", "probabilities")
    model = onnx.load(str(twice))
    (output,) = model.graph.output
    model.graph.node.append(onnx.helper.make_node("Softmax", [output.name], ["twice"]))
    output.name = "twice"
    onnx.save(model, str(twice))
    assert finished_chain.run("verify", "--onnx", str(twice), "--json") == 1
    (hint,) = line_of(capsys)["hints"]
    assert hint["cause"] == "softmax twice"


def test_a_file_that_is_no_such_classifier_is_bad_input_and_no_failed_verdict(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(str(theirs(finished_chain.root / ONNX["fp32"], tmp_path / "theirs.onnx")))
    model.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["n"]))
    onnx.save(model, str(tmp_path / "two.onnx"))
    assert finished_chain.run("verify", "--onnx", str(tmp_path / "two.onnx"), "--json") == 2
    captured = capsys.readouterr()
    assert "Expected one input of images" in json.loads(captured.out.splitlines()[-1])["error"]
    assert "verdict" not in captured.err


def test_a_minimum_that_was_raised_refuses_the_images_that_are_there(
    finished_chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(finished_chain.root)
    assert finished_chain.run("verify", "--set", "verify.min_images=900") == 2
    assert "Expected at least 900 test images (verify.min_images). Received: " in capsys.readouterr().err
    assert content(finished_chain.root) == before


def test_junit_and_baseline_work_where_the_verdict_is_up_to_date(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junit, baseline = tmp_path / "parity.xml", finished_chain.root / PARITY
    report = json.loads(baseline.read_text())
    assert finished_chain.run("verify", "--junit", str(junit), "--baseline", str(baseline), "--json") == 0
    assert line_of(capsys)["baseline"] == {"worse": 0, "changes": []}
    (suite,) = ElementTree.parse(junit).getroot()
    assert len(suite.findall("testcase")) == len(report["hops"])
    properties = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert properties["images_sha256"] == report["images_sha256"]
    assert properties["sha256 of export/model.onnx"] == report["subjects"]["export/model.onnx"]
    assert "version of onnxruntime" in properties

    (hop,) = [h for h in report["hops"] if h["kind"] == "from_keras" and h["candidate"] == ONNX["int8"]]
    hop["image_noise"]["mean_db"] += 40
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(report))
    assert finished_chain.run("verify", "--baseline", str(earlier), "--json") == 1
    line = line_of(capsys)
    assert line["verdict"] == "pass"
    assert [(c["what"], c["run"], c["measure"]) for c in line["baseline"]["changes"]] == [
        ("worse", ONNX["int8"], "SQNR")
    ]
    report["images_sha256"] = "0" * 64
    earlier.write_text(json.dumps(report))
    assert finished_chain.run("verify", "--baseline", str(earlier)) == 2
    assert "baseline on the same test images" in capsys.readouterr().err
    earlier.write_text("{}")
    assert finished_chain.run("verify", "--baseline", str(earlier)) == 2
    said = capsys.readouterr().err
    assert "Name the verify/parity.json of an earlier release" in said
    assert "verify stage again" not in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "photos"], "Expected --images with --onnx"),
        (["--precision", "int8"], "Expected --precision with --onnx"),
        (["--onnx", "none.onnx"], "Expected an ONNX file after --onnx. Received: none.onnx"),
        (["--onnx", "x.onnx", "--force"], "Expected --force without --onnx"),
        (["--onnx", "x.onnx", "--reduce"], "Expected --reduce without --onnx"),
        (["--onnx", "x.onnx", "--baseline", "x.json"], "Expected --baseline without --onnx"),
        (["--junit", "p.txt"], "ends in .xml after --junit, such as p.xml"),
        (["--junit", "p.xml", "--explain"], "Expected --explain without --junit"),
        (["--baseline", "none.json"], "Expected a parity.json after --baseline"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], said: str, made_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    assert made_chain.run("verify", *options) == 2
    assert said in capsys.readouterr().err
