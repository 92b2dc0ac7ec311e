"""The whole chain on the tiny recipe: its contract, what reruns and what does not, planted faults."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from export.onnx_passes.signature import append_top_k
from export.tensorrt.driver import driver_status
from pipeline.artifacts.diagnosis import read_diagnosis
from pipeline.artifacts.files import sha256_file
from pipeline.artifacts.image_results import read_image_results
from pipeline.artifacts.paths import CARD, DIAGNOSIS, IMAGE_RESULTS, ONNX, TENSORRT8
from pipeline.data.dataset import load_image_set
from pipeline.recipe.load import load_recipe
from pipeline.verification.flips import changed_answers
from tests.conftest import CLASSES, Chain

STAGES = ("train", "export", "quantize", "build", "verify", "benchmark", "infer", "report")
HOP_FIELDS = {
    "kind", "reference", "candidate", "backend", "images", "max_abs", "cosine", "sqnr_db", "top1_agreement",
    "accuracy_reference", "accuracy_candidate", "verdict", "why",
}  # fmt: skip
RESULT_FIELDS = {
    "backend", "precision", "batch", "samples_ms", "p50_ms", "p90_ms", "p99_ms", "images_per_second", "includes",
}  # fmt: skip


def strict_json(path: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def explain(chain: Chain, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What each stage would do now."""
    capsys.readouterr()
    assert chain.run("run", "--explain") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


def test_contract_files(finished_chain: Chain) -> None:
    root = finished_chain.root
    for name in (
        "train/model.keras", "export/model.onnx", "quantize/model.fp16.onnx", "quantize/model.int8.onnx",
        "quantize/scales.json", "quantize/calibration.json",
        "verify/parity.json", "verify/reference.npz", "benchmark/benchmark.json",
        "infer/predictions.csv", "report/report.html",
    ):  # fmt: skip
        assert (root / name).stat().st_size > 0, name
    for stage in STAGES:
        manifest = strict_json(root / stage / "manifest.json")
        assert manifest["stage"] == stage
        assert manifest["seconds"] > 0
        assert manifest["versions"]["numpy"] == np.__version__
        assert all(len(entry["sha256"]) == 64 for entry in manifest["outputs"].values())
    assert not list(root.glob("quantize/*trt8*")), "they are made on request"
    assert not [p for p in root.iterdir() if ".tmp-" in p.name or p.name.endswith(".former")]


def test_the_engines_are_real(finished_chain: Chain) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has no wheel for this platform")
    for precision in ("fp32", "fp16", "int8"):
        plan = finished_chain.root / "build" / "rtx" / f"{precision}.plan"
        sidecar = strict_json(plan.with_suffix(".json"))
        assert plan.stat().st_size == sidecar["plan_bytes"] > 10_000
        assert sidecar["precision"] == precision
        assert sidecar["profile"] == {"min": 1, "opt": 4, "max": 8}
        assert sidecar["classes"] == list(CLASSES)
        assert sidecar["preprocessing"]["mode"] == "caffe"


def test_parity(finished_chain: Chain) -> None:
    parity = strict_json(finished_chain.root / "verify" / "parity.json")
    assert parity["verdict"] == "pass"
    assert all(hop.keys() >= HOP_FIELDS for hop in parity["hops"])
    ran = {(hop["kind"], hop["precision"]): hop for hop in parity["hops"] if hop["backend"] == "onnxruntime"}
    assert ran["from_keras", "fp32"]["relative_error"] <= 1e-5
    assert ran["from_keras", "fp16"]["sqnr_db"] >= 50
    assert ran["from_keras", "int8"]["sqnr_db"] >= 20
    assert {"fp16", "int8"} == {precision for kind, precision in ran if kind == "step"}
    compared = [hop for hop in ran.values() if hop["kind"] in ("from_keras", "step")]
    assert all(hop["accuracy_reference"] > 0.8 for hop in compared), "the tiny model must have learned something"
    assert all(hop["images"] >= 60 for hop in compared)
    assert {precision for kind, precision in ran if kind == "consistency"} == {"fp32", "fp16", "int8"}
    assert len(parity["images_sha256"]) == 64


@pytest.mark.skipif(bool(driver_status()), reason="this machine has a GPU")
def test_engines_without_a_gpu_are_built_and_not_run(finished_chain: Chain) -> None:
    parity = strict_json(finished_chain.root / "verify" / "parity.json")
    engines = [hop for hop in parity["hops"] if hop["backend"] == "tensorrt"]
    if not engines:
        pytest.skip("TensorRT-RTX has no wheel for this platform, so there is no engine")
    assert {hop["verdict"] for hop in engines} == {"not run"}
    assert all(hop["why"].startswith("built, not run here: no NVIDIA driver") for hop in engines)
    assert all(hop["sqnr_db"] is None for hop in engines)


def test_without_any_tensorrt_the_rest_goes_on(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.workflow import environment

    shutil.rmtree(chain.root / "build")
    monkeypatch.setattr(environment, "find_tensorrt", lambda flavour: None)
    monkeypatch.setattr(environment, "why_missing", lambda: {"tensorrt": "not installed", "rtx": "no wheel"})
    for verb in ("build", "verify", "infer", "report"):
        assert chain.run(verb) == 0, verb
    manifest = strict_json(chain.root / "build" / "manifest.json")
    assert manifest["result"] == {"built": {}, "kept": [], "why_not": "tensorrt: not installed; rtx: no wheel"}
    parity = strict_json(chain.root / "verify" / "parity.json")
    assert {hop["backend"] for hop in parity["hops"] if hop["candidate"] != CARD} == {"onnxruntime"}
    assert "rtx: no wheel" in (chain.root / "report" / "report.html").read_text()


def test_engines_of_another_machine_are_kept_as_long_as_they_fit(chain: Chain) -> None:
    """Engines that came with a bundle from a GPU machine survive a build here; those of an older model do not."""
    build = chain.root / "build"
    if not (build / "rtx").exists():
        pytest.skip("TensorRT-RTX has no wheel for this platform, so there is no engine")
    (build / "rtx").rename(build / "tensorrt")
    sidecar = strict_json(build / "tensorrt" / "fp16.json")
    (build / "tensorrt" / "fp16.json").write_text(json.dumps(sidecar | {"onnx_sha256": "0" * 64}))
    assert chain.run("build", "--force") == 0
    assert sorted(p.name for p in (build / "tensorrt").glob("*.plan")) == ["fp32.plan", "int8.plan"]
    assert sorted(p.name for p in (build / "rtx").glob("*.plan")) == ["fp16.plan", "fp32.plan", "int8.plan"]


def test_reference_is_enough_without_tensorflow(finished_chain: Chain) -> None:
    with np.load(finished_chain.root / "verify" / "reference.npz", allow_pickle=False) as file:
        pixels, labels, logits = file["pixels"], file["labels"], file["logits"]
    assert pixels.dtype == np.uint8
    assert pixels.shape[1:] == (32, 32, 3)
    assert logits.shape == (len(pixels), len(CLASSES))
    assert (logits.argmax(1) == labels).mean() > 0.8


def test_calibration_is_disjoint_from_the_other_splits(finished_chain: Chain) -> None:
    images = load_image_set(load_recipe(finished_chain.recipe).data)
    hashes = {split: {s.sha256 for s in samples} for split, samples in images.splits.items()}
    used = {
        row["sha256"] for row in json.loads((finished_chain.root / "quantize/images.json").read_text())["calibration"]
    }
    assert used <= hashes["calibration"]
    assert not used & (hashes["train"] | hashes["validation"] | hashes["test"])


def test_benchmark(finished_chain: Chain) -> None:
    benchmark = strict_json(finished_chain.root / "benchmark" / "benchmark.json")
    assert benchmark["schema"] == 3
    assert benchmark["serves"] is None  # without a GPU
    assert benchmark["machine"]["cpu"]["model"]
    timed = {(row["backend"], row["precision"], row["batch"]) for row in benchmark["results"]}
    expected = {("onnxruntime", precision) for precision in ("fp32", "fp16", "int8")} | {("keras", "fp32")}
    assert timed >= {(backend, precision, batch) for backend, precision in expected for batch in (1, 8)}
    for row in benchmark["results"]:
        assert row.keys() >= RESULT_FIELDS
        assert row["p50_ms"] == pytest.approx(np.median(row["samples_ms"]), rel=1e-3)


def test_predictions_and_report(finished_chain: Chain) -> None:
    with (finished_chain.root / "infer" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert list(rows[0])[:4] == ["path", "status", "class", "probability"]
    assert list(rows[0])[-3:] == ["error", "width", "height"]
    assert sum(Path(row["path"]).parent.name == row["class"] for row in rows) >= 6
    html = (finished_chain.root / "report" / "report.html").read_text()
    assert re.search(r'<span class="badge pass">ONNX files pass on \d+ images \(at least 9\d\.\d % agreement\)', html)
    assert html.count("data:image/") == 8 + 6 + 3 * 5, "predictions, images trained on, and each file's worst"
    assert html.count("<svg") == 2
    loads = re.findall(r"""<script|<link|(?:src|href)\s*=\s*["'](?!data:|#)|url\((?!#)""", html)
    assert not loads, "the page must not load anything"


def test_second_run_does_nothing(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    # The copy has another data.path; paths decide nothing, content does.
    assert set(explain(chain, capsys).values()) == {"up to date"}
    assert chain.run("run", "--json") == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {stage["status"] for stage in last["stages"].values()} == {"up to date"}


def test_a_new_time_reruns_nothing(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    for path in chain.images.rglob("*.png"):
        os.utime(path, (1, 1))
    assert set(explain(chain, capsys).values()) == {"up to date"}


@pytest.mark.parametrize(
    ("split", "first", "kept"),
    [
        ("train", "train", ()),
        ("calibration", "quantize", ("train", "export")),
        ("test", "verify", ("train", "export", "quantize", "build")),
    ],
)
def test_changed_bytes_rerun_what_depends_on_them(
    chain: Chain, capsys: pytest.CaptureFixture[str], split: str, first: str, kept: tuple[str, ...]
) -> None:
    config = load_recipe(chain.recipe).data
    before = load_image_set(config)
    path = before.splits[split][0].path
    assert path is not None
    for attempt in range(400):  # until the new content falls into the same split: then nothing else may move
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, 0] = attempt % 256, attempt // 256, 99
        Image.fromarray(pixels).save(path)
        after = load_image_set(config)
        if str(path) in {str(s.path) for s in after.splits[split]}:
            break
    others = {s.sha256: name for name, samples in before.splits.items() for s in samples if s.path != path}
    now = {s.sha256: name for name, samples in after.splits.items() for s in samples if s.path != path}
    assert others == now, "another image moved"
    plan = explain(chain, capsys)
    assert f"data/{split}" in plan[first]
    assert all(plan[stage] == "up to date" for stage in kept)


def test_a_recipe_change_reruns_from_there(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    assert chain.run("run", "--explain", "--set", "verify.thresholds.fp32.sqnr_db=5") == 0
    plan = capsys.readouterr().out
    assert "quantize  up to date" in plan
    assert "verify    would run: recipe verify.thresholds.fp32.sqnr_db: " in plan


@pytest.mark.parametrize(("precision", "default"), [("fp16", "50.0"), ("int8", "20.0")])
def test_each_graph_is_made_for_its_thresholds(
    chain: Chain, capsys: pytest.CaptureFixture[str], precision: str, default: str
) -> None:
    assert chain.run("run", "--explain", "--set", f"verify.thresholds.{precision}.sqnr_db=5") == 0
    plan = capsys.readouterr().out
    assert "export    up to date" in plan
    assert f"quantize  would run: recipe verify.thresholds.{precision}.sqnr_db: {default} -> 5.0" in plan


# --- the best classes, picked by the graph itself ---

BEST = ("logits", "probabilities", "top_probabilities", "top_classes")


def test_the_graph_picks_the_best_classes(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    def answers() -> list[list[str]]:
        with (chain.root / "infer" / "predictions.csv").open(newline="") as file:
            return [row[1:] for row in csv.reader(file)]  # the rest names the folder of this test

    before = answers()
    assert chain.run("run", "--explain", "--set", "export.top_k=3") == 0
    plan = capsys.readouterr().out
    assert "train     up to date" in plan
    assert "export    would run: recipe export.top_k: 0 -> 3" in plan
    for verb in ("export", "quantize", "build", "verify", "infer", "report"):
        assert chain.run(verb, "--set", "export.top_k=3", "--set", "quantize.tensorrt8=true") == 0, verb
    files = (*ONNX.values(), *TENSORRT8.values())
    for name in files:
        assert tuple(output.name for output in onnx.load(chain.root / name).graph.output) == BEST, name
    for path in chain.root.glob("build/*/*.json"):
        outputs = {one["name"]: one for one in strict_json(path)["tensors"] if one["mode"] == "output"}
        assert set(outputs) == set(BEST), path
        assert (outputs["top_classes"]["dtype"], outputs["top_classes"]["shape"]) == ("int32", [-1, 3])
    parity = strict_json(chain.root / "verify" / "parity.json")
    assert {hop["candidate"]: hop["verdict"] for hop in parity["hops"] if hop["kind"] == "top_k"} == dict.fromkeys(
        files, "pass"
    )
    assert answers() == before
    assert (
        "The best 3 that the graph picks are those of its probabilities"
        in (chain.root / "report" / "report.html").read_text()
    )


def test_a_file_that_picks_others_than_the_best_does_not_serve(chain: Chain, tmp_path: Path) -> None:
    name = "quantize/model.int8.onnx"
    model = append_top_k(onnx.load(chain.root / name), "probabilities", 3)
    node = next(node for node in model.graph.node if node.op_type == "TopK")
    node.attribute.append(helper.make_attribute("largest", 0))
    onnx.save(model, chain.root / name)
    assert chain.run("verify") == 1
    hops = strict_json(chain.root / "verify" / "parity.json")["hops"]
    failed = [(hop["kind"], hop["candidate"]) for hop in hops if hop["verdict"] == "fail"]
    assert [hop for hop in failed if not hop[1].endswith(".plan")] == [("top_k", name)]
    photo = str(next(chain.images.rglob("*.png")))
    assert chain.run("infer", photo, "-o", str(tmp_path / "out.csv"), "--precision", "int8") == 2


def test_more_best_classes_than_there_are(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    former = (chain.root / "export" / "model.onnx").read_bytes()
    assert chain.run("export", "--set", "export.top_k=5") == 2
    assert "Expected export.top_k from 1 to 4, the number of classes. Received: 5" in capsys.readouterr().err
    assert (chain.root / "export" / "model.onnx").read_bytes() == former


# --- planted faults: verification must see them ---


def _swap_channels(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "swapped_order"))
    for node in model.graph.node:
        node.input[:] = ["swapped" if name == "images" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Gather", ["images", "swapped_order"], ["swapped"], axis=3))


def _drop_mean(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "Sub")
    initializer = next(i for i in model.graph.initializer if i.name == node.input[1])
    initializer.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(initializer)), initializer.name))


def _double_one_scale(model: onnx.ModelProto) -> None:
    """The scale with which one activation is dequantised; the quantising one stays, as a broken converter would."""
    quantized = {n.output[0]: n for n in model.graph.node if n.op_type == "QuantizeLinear"}
    initializers = {i.name: i for i in model.graph.initializer}
    node = next(
        n
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and quantized[n.input[0]].input[0] not in initializers
    )
    doubled = numpy_helper.to_array(initializers[node.input[1]]) * 2
    model.graph.initializer.append(numpy_helper.from_array(doubled.astype(doubled.dtype), "doubled_scale"))
    node.input[1] = "doubled_scale"


@pytest.mark.parametrize(
    ("file", "plant"),
    [
        ("export/model.onnx", _swap_channels),
        ("export/model.onnx", _drop_mean),
        ("quantize/model.fp16.onnx", _swap_channels),
        ("quantize/model.int8.onnx", _swap_channels),
        ("quantize/model.int8.onnx", _double_one_scale),
    ],
)
def test_planted_faults_fail(chain: Chain, file: str, plant: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(chain.root / file)
    plant(model)
    onnx.save(model, chain.root / file)
    assert chain.run("verify") == 1
    parity = strict_json(chain.root / "verify" / "parity.json")
    assert parity["verdict"] == "fail"
    failed = {hop["candidate"] for hop in parity["hops"] if hop["verdict"] == "fail" and hop["kind"] == "from_keras"}
    stale = {hop["candidate"] for hop in parity["hops"] if " is stale: it was built from another file" in hop["why"]}
    assert all(name.endswith(".plan") for name in stale)
    assert failed - stale == {file}
    assert chain.run("verify") == 1, "up to date, and still fail"


def test_a_file_that_failed_does_not_serve(chain: Chain, tmp_path: Path) -> None:
    file = "export/model.onnx"
    model = onnx.load(chain.root / file)
    _swap_channels(model)
    onnx.save(model, chain.root / file)
    photo, out = str(next(chain.images.rglob("*.png"))), tmp_path / "out.csv"
    assert chain.run("infer", photo, "-o", str(out), "--precision", "fp32") == 2, "never verified"
    assert chain.run("verify") == 1
    assert chain.run("infer", photo, "-o", str(out), "--precision", "fp32") == 2, "failed"
    assert not out.exists()
    assert chain.run("infer", photo, "-o", str(out), "--precision", "fp32", "--allow-unverified") == 0
    assert out.exists()


def test_a_verdict_that_too_few_images_leave_open(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FP32 answers as Keras does; that it be a thousandth better is more than these images can tell."""
    asked = ("--set", "verify.thresholds.fp32.accuracy_drop=-0.001")
    for attempt in ("it runs", "up to date"):
        capsys.readouterr()
        assert chain.run("verify", *asked, "--json") == 0, attempt
        shown = capsys.readouterr()
        result = json.loads(shown.out.strip().splitlines()[-1])
        images = result["stages"]["verify"]["images"]
        assert (result["verdict"], result["exit"]) == ("inconclusive", 0)
        assert result["stages"]["verify"]["images_to_decide"] == 3838
        warning = next(line for line in shown.err.splitlines() if line.startswith("warning: verdict: inconclusive"))
        assert f"{images} test images are too few to tell, about 3,838 would" in warning
        assert "raise verify.max_images (now 1,000) to as many" in warning
        if attempt == "it runs":
            assert re.search(r"inconclusive \[1\] +Keras -> export/model.onnx", shown.err)
            assert "[1] inconclusive: accuracy drop 0.00 % (95 %: -" in shown.err
            assert re.search(r"pass \[2\] +Keras -> quantize/model.fp16.onnx", shown.err)
            assert re.search(r"\[2\] at least 9\d\.\d % agreement with 95 % confidence", shown.err)
            assert "verdict: inconclusive" in shown.err
    photo, out = str(next(chain.images.rglob("*.png"))), tmp_path / "out.csv"
    infer = ("infer", photo, "-o", str(out), "--backend", "onnxruntime", "--json", *asked)
    assert chain.run(*infer, "--precision", "fp32") == 0
    assert "warning: export/model.onnx serves although its verdict is: inconclusive" in capsys.readouterr().err
    assert chain.run(*infer) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.strip().splitlines()[-1])["model"] == "quantize/model.fp16.onnx", "it passed"
    assert "serves although" not in shown.err
    assert chain.run("report", *asked) == 0
    html = (chain.root / "report" / "report.html").read_text()
    assert re.search(
        r'<span class="badge inconclusive">model.onnx is inconclusive on \d+ images; 2 of 3 ONNX files pass', html
    )
    assert "about 3,838 images would decide" in html
    assert "agreement with 95 % confidence" in html
    assert ">0 / 0, p 1</td>" in html


def test_a_verdict_of_another_version_is_refused_with_what_remakes_it(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = chain.root / "verify" / "parity.json"
    path.write_text(json.dumps(strict_json(path) | {"schema": 3}))
    photo = str(next(chain.images.rglob("*.png")))
    assert chain.run("infer", photo, "-o", str(tmp_path / "out.csv")) == 2
    said = "Expected the verdict of schema 4 in"
    assert said in (err := capsys.readouterr().err)
    assert "Received: schema 3. Run the recipe's verify stage again: " in err
    assert " -m pipeline verify -c " in err
    assert chain.run("report") == 2
    assert said in capsys.readouterr().err
    assert chain.run("verify") == 0
    assert chain.run("infer", photo, "-o", str(tmp_path / "out.csv")) == 0


def test_a_truncated_onnx_file_is_a_failed_hop(chain: Chain) -> None:
    path = chain.root / "quantize" / "model.fp16.onnx"
    path.write_bytes(path.read_bytes()[:5000])
    assert chain.run("verify") == 1
    hops = strict_json(chain.root / "verify" / "parity.json")["hops"]
    why = next(hop["why"] for hop in hops if hop["candidate"] == "quantize/model.fp16.onnx")
    assert "model.fp16.onnx, which does not parse: damaged or cut short" in why
    assert chain.run("build", "--force") == 2, "TensorRT refuses it too"
    assert (chain.root / "build" / "manifest.json").exists(), "the former engines stay"


def test_without_the_data_the_artifacts_stay_up_to_date(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(chain.images)
    assert set(explain(chain, capsys).values()) == {"up to date"}
    assert chain.run("verify", "--force") == 0, "reference.npz stands in for images and Keras"
    assert chain.run("train", "--force") == 2


def test_the_results_of_every_image_and_what_explains_the_verdict(finished_chain: Chain) -> None:
    results = read_image_results(finished_chain.root / IMAGE_RESULTS)
    parity = strict_json(finished_chain.root / "verify" / "parity.json")
    assert results.runs[:4] == ("train/model.keras", *ONNX.values())
    assert all((finished_chain.images / name).is_file() for name in results.names)
    by_run = {hop["candidate"]: hop for hop in parity["hops"] if hop["kind"] == "from_keras" and hop["max_abs"]}
    for run in ONNX.values():
        assert [flip.image for flip in changed_answers(results, run)] == by_run[run]["changed"]
    diagnosis = read_diagnosis(finished_chain.root / DIAGNOSIS)
    assert diagnosis.parity_sha256 == sha256_file(finished_chain.root / "verify" / "parity.json")
    assert diagnosis.hints == ()
    assert [(one.kind[:3], one.equal) for one in diagnosis.decoding if one.required] == [("PNG", True)]


def test_names_of_images_that_an_earlier_version_left_out_are_found_again(chain: Chain) -> None:
    path = chain.root / "verify" / "reference.npz"
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(arrays["meta"].tobytes())
    names = meta.pop("names")
    np.savez(path, **arrays | {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)})
    manifest = chain.root / "verify" / "manifest.json"
    text = json.loads(manifest.read_text())
    text["outputs"]["reference.npz"] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    manifest.write_text(json.dumps(text))
    assert chain.run("verify", "--force") == 0
    assert list(read_image_results(chain.root / IMAGE_RESULTS).names) == names
