"""A false answer is not served: what happens to a picture, and what vouches for a verdict, through the commands."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
import yaml
from keras import layers
from PIL import Image

from benchmarks.command import main as benchmark
from export.files import ROOT
from pipeline.artifacts.files import sha256_file, write_json
from pipeline.artifacts.manifest import MANIFEST, Key, write_manifest
from pipeline.cli.bundle import bundle
from pipeline.cli.commands import main
from pipeline.models.model_card import read_card
from pipeline.recipe.load import load_recipe
from pipeline.recipe.locate import UNPACKED
from pipeline.runners.tensorrt.runner import TensorRTRunner
from pipeline.workflow.context import Context
from tests.conftest import Chain
from tests.made_records import make_card

PAD = ("--set", "data.resize=pad")


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


# --- the host half of preprocessing ---


@pytest.mark.parametrize("verb", ["export", "quantize", "build", "verify", "infer", "report", "bundle"])
def test_verbs_that_do_not_train_refuse_another_resize(
    finished_chain: Chain, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert finished_chain.run(verb, *PAD) == 2, "up to date or not"
    said = errors(capsys)
    assert "data.resize: expected stretch, which the model was trained and is verified with" in said
    assert "Received: pad" in said
    assert f"pipeline train -c {finished_chain.recipe} --set data.resize=pad" in said


def test_photos_are_never_served_with_another_resize(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was exit 0 and "verdict: pass", with other classes for some of the photos."""
    output = tmp_path / "out.csv"
    assert finished_chain.run("infer", *PAD, str(finished_chain.images / "red"), "-o", str(output)) == 2
    assert "data.resize: expected stretch" in errors(capsys)
    assert not output.exists()
    arguments = ["-c", str(finished_chain.recipe), "--artifacts", str(finished_chain.artifacts), *PAD]
    assert benchmark(arguments) == 2
    assert "data.resize: expected stretch" in errors(capsys)


def test_what_else_the_recipe_says_by_now_is_said(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rows = served(finished_chain, tmp_path, "--set", "train.seed=99", "--set", "model.dropout=0.5")
    assert (status, len(rows)) == (0, 1)
    said = "the model predicts as it was trained; the recipe has changed since: "
    assert f"{said}model.dropout: 0.0 -> 0.5; train.seed: 1 -> 99" in errors(capsys)


def test_run_trains_anew_for_another_resize(finished_chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert finished_chain.run("run", *PAD, "--explain") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("train     would run: recipe data.resize: stretch -> pad")


def test_every_file_says_how_pictures_come_to_it(finished_chain: Chain) -> None:
    root = finished_chain.root
    card = json.loads((root / "train" / "model.json").read_text())
    assert card["decode"]["size"] == [32, 32]
    assert card["decode"]["resize"] == "stretch"
    for name in ("export/model.onnx", "quantize/model.fp16.onnx", "quantize/model.int8.onnx"):
        said = {one.key: one.value for one in onnx.load(root / name).metadata_props}
        assert json.loads(said["decode"]) == card["decode"], name
        assert json.loads(said["classes"]) == card["classes"], name
    with np.load(root / "verify" / "reference.npz") as file:
        assert json.loads(file["meta"].tobytes())["decode"] == card["decode"]
    for plan in root.glob("build/*/*.plan"):
        read_card(root / "train" / "model.json").check_runner(TensorRTRunner(plan), plan.name)
    subjects = json.loads((root / "verify" / "parity.json").read_text())["subjects"]
    for name in ("train/model.json", "train/model.keras", "verify/reference.npz", "export/model.onnx"):
        assert subjects[name] == sha256_file(root / name)


def test_the_snippet_of_the_readme_decodes_as_the_model_wants(
    finished_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = readme.split("```python\n")[1].split("with TensorRTRunner")[0]
    assert "artifacts/digits/train/model.json" in snippet
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save(tmp_path / "photos" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(snippet.replace("artifacts/digits", finished_chain.root.as_posix()), found)
    assert (found["pixels"].shape, found["pixels"].dtype) == ((1, 32, 32, 3), np.uint8)


# --- what vouches for a verdict ---


def edit(path: Path, change: Callable[[Any], object]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def served(chain: Chain, tmp_path: Path, *more: str) -> tuple[int, list[dict[str, str]]]:
    output = tmp_path / "out.csv"
    photo = str(next(chain.images.rglob("*.png")))
    status = chain.run("infer", photo, "-o", str(output), *more)
    with output.open(newline="") if output.exists() else open("/dev/null") as file:
        return status, list(csv.DictReader(file))


def test_a_verdict_edited_to_pass_serves_nothing(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(chain.root / "verify" / "parity.json", lambda tree: tree["hops"][0].update(why="nothing"))
    assert served(chain, tmp_path) == (2, [])
    assert "verify/parity.json was altered since the verify stage wrote it" in errors(capsys)


def test_other_thresholds_want_another_verdict(
    finished_chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It answered with "verdict: pass", by thresholds that nobody asked for any more."""
    assert served(finished_chain, tmp_path, "--set", "verify.thresholds.int8.sqnr_db=90") == (2, [])
    said = errors(capsys)
    assert "the verdict was given by other thresholds than the recipe's verify.thresholds" in said
    assert "pipeline run -c" in said


def test_an_altered_file_is_named_where_the_next_one_answers(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = chain.root / "export" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    status, rows = served(chain, tmp_path)
    assert (status, len(rows)) == (0, 1)
    said = errors(capsys)
    passed_over = [line for line in said.splitlines() if "Skipped:" in line]
    assert passed_over == [
        "warning: quantize/model.fp16.onnx serves. Skipped: export/model.onnx was altered since it was verified"
    ]


def test_weights_outside_the_file_serve_nowhere(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = chain.root / "export" / "model.onnx"
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert served(chain, tmp_path, "--precision", "fp32", "--allow-unverified") == (2, [])
    assert "keeps some in other files (external data)" in errors(capsys)
    assert chain.run("verify") == 1
    hops = json.loads((chain.root / "verify" / "parity.json").read_text())["hops"]
    assert {hop["verdict"] for hop in hops if hop["candidate"] == "export/model.onnx"} == {"fail"}


@pytest.mark.parametrize("names", [["blue", "green", "red"], ["blue", "green", "red", "yellow", "pink"]])
def test_a_card_with_another_number_of_names(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    """Fewer names crashed, more of them shifted."""
    edit(chain.root / "train" / "model.json", lambda tree: tree.update(classes=names))
    assert served(chain, tmp_path) == (2, [])
    assert "train/model.json was altered since it was verified" in errors(capsys)
    assert served(chain, tmp_path, "--allow-unverified") == (2, [])
    assert f"Expected 4 class names, as the model has outputs. Received: {len(names)}" in errors(capsys)


def test_names_in_another_order_are_not_verified_anew(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    edit(chain.root / "train" / "model.json", lambda tree: tree["classes"].reverse())
    assert chain.run("verify") == 2
    assert "Expected data of the model's 4 classes" in errors(capsys)


def test_answers_that_somebody_wrote_into_the_reference_are_not_believed(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    path = chain.root / "verify" / "reference.npz"
    with np.load(path) as file:
        held = {name: file[name] for name in file.files}
    true = held["logits"].copy()
    np.savez(path, **held | {"logits": held["logits"][:, ::-1]})
    assert chain.run("verify") == 0
    assert "reference.npz is damaged and is computed again: it is not what the verify stage wrote" in errors(capsys)
    with np.load(path) as file:
        np.testing.assert_allclose(file["logits"], true, rtol=1e-3, atol=1e-4)


# --- an archive gives no permission ---


@pytest.fixture
def with_code(tmp_path: Path) -> Path:
    """An archive of a model whose Lambda writes a file, with a recipe that allows it."""
    x = inputs = layers.Input((8, 8, 3))
    ran = str(tmp_path / "ran")
    writes = eval(f'lambda t: (open({ran!r}, "w").close(), t)[1]')
    x = layers.Lambda(writes, name="preprocess", output_shape=(8, 8, 3))(x)
    x = layers.Dense(3, activation="softmax")(layers.Flatten()(x))
    root = tmp_path / "here" / "toy"
    (root / "train").mkdir(parents=True)
    keras.Model(inputs, x).save(root / "train" / "model.keras")
    write_json(root / "train" / "model.json", make_card(source="model.keras"))
    write_manifest(
        root / "train", stage="train", recipe="toy", key=Key({"model.path": "0" * 64}, {}, ""), seconds=1, result={}
    )
    recipe = tmp_path / "toy.yaml"
    tree = {
        "data": {"source": "digits"},
        "model": {"path": "/nowhere/model.keras", "allow": ["preprocess"]},
        "build": {"timing_cache": str(tmp_path / "victim"), "version_compatible": True},
    }
    recipe.write_text(yaml.safe_dump(tree))
    archive = tmp_path / "toy.tar"
    bundle(Context(load_recipe(recipe), recipe, tmp_path / "here", ()), archive)  # the verb wants a whole chain
    # As somebody would write it who wants it to run: the recipe as it was.
    Path(ran).unlink(missing_ok=True)
    return _with_recipe(archive, yaml.safe_dump({"name": "toy"} | tree))


def _with_recipe(archive: Path, recipe: str) -> Path:
    folder = archive.with_suffix(".d")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (folder / UNPACKED).write_text(recipe)
    edit(folder / "bundle.json", lambda tree: tree.update(recipe_sha256=sha256_file(folder / UNPACKED)))
    with tarfile.open(archive, "w") as tar:
        for name in ("bundle.json", UNPACKED, *sorted(json.loads((folder / "bundle.json").read_text())["files"])):
            tar.add(folder / name, arcname=name)
    return archive


def test_an_archive_brings_no_permission(with_code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    capsys.readouterr()
    assert main(["unpack", str(with_code), "--artifacts", str(there), "--json"]) == 0
    out, said = capsys.readouterr()
    assert "code: train/model.keras holds Lambda preprocess: runs any Python that its author wrote" in said
    assert "refused unless you give --set 'model.allow=[preprocess]'" in said
    assert any("Lambda preprocess" in line for line in json.loads(out.splitlines()[-1])["code"])
    for option in ("model.allow=", "build.version_compatible=true", "build.timing_cache="):
        assert f"left out of the archive's recipe, because the receiver decides it: --set '{option}" in said
    recipe = load_recipe(there / "toy" / UNPACKED)
    assert (recipe.model.allow, recipe.build.timing_cache, recipe.build.version_compatible) == ((), None, False)
    arguments = ["-c", str(there / "toy" / UNPACKED), "--artifacts", str(there)]
    assert main(["export", *arguments]) == 2
    assert "a Lambda layer preprocess" in errors(capsys)
    assert not (tmp_path / "ran").exists()
    assert main(["export", *arguments, "--set", "model.allow=[preprocess]"]) in (0, 2)
    assert (tmp_path / "ran").exists(), "the receiver may"


def test_a_card_cannot_give_one_either(with_code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    assert main(["unpack", str(with_code), "--artifacts", str(there)]) == 0
    edit(there / "toy" / "train" / "model.json", lambda tree: tree.update(allow=["preprocess"]))
    assert main(["export", "-c", str(there / "toy" / UNPACKED), "--artifacts", str(there)]) == 2
    assert "the unknown key 'allow'" in errors(capsys)
    assert not (tmp_path / "ran").exists()


def test_a_recipe_under_another_name_is_refused(
    with_code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _with_recipe(with_code, yaml.safe_dump({"name": "digits", "data": {"source": "digits"}}))
    assert main(["unpack", str(with_code), "--artifacts", str(tmp_path / "there")]) == 2
    assert "its recipe is named 'digits', its index says 'toy'" in errors(capsys)
    assert not (tmp_path / "there" / "toy" / "train" / MANIFEST).exists()
