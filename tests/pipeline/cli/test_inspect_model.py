"""``inspect``: what a file is, read without running the model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from export.files import ROOT

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import yaml
from keras import layers

from pipeline.cli.commands import main
from pipeline.recipe.load import load_recipe
from tests.pipeline import legacy_models

SHARED = ROOT.parent / "shared" / "data"


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict, str]:
    capsys.readouterr()
    assert main(["inspect", str(path), "--json"]) == 0
    text, _, line = capsys.readouterr().out.rstrip("\n").rpartition("\n")
    return json.loads(line), text


@pytest.fixture
def modern(tmp_path: Path) -> tuple[Path, keras.Model]:
    base = keras.Sequential(
        [layers.Input((16, 16, 3)), layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="bn")], name="base"
    )
    base.trainable = False
    inputs = layers.Input((16, 16, 3), name="picture")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="scale")(inputs)
    x = layers.Lambda(lambda t: t, name="mystery")(x)
    x = layers.Dense(3, activation="sigmoid", name="out")(layers.GlobalAveragePooling2D()(base(x)))
    model = keras.Model(inputs, x)
    model.save(tmp_path / "modern.keras")
    return tmp_path / "modern.keras", model


def test_an_archive(modern, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = modern
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("the model was built"))
    facts, text = inspect(path, capsys)
    assert facts["written_by"] == f"Keras {keras.__version__}"
    assert facts["inputs"] == ["picture float32 (None, 16, 16, 3)"]
    assert facts["outputs"] == ["Dense out 3 units sigmoid"]
    assert facts["layers"]["Conv2D"] == 1
    trainable = sum(int(w.numpy().size) for w in model.trainable_weights)
    total = model.count_params()
    assert facts["parameters"] == {"total": total, "trainable": trainable, "frozen": total - trainable}
    assert facts["preprocessing"][0].startswith("Rescaling scale: x * 0.0078")
    assert facts["preprocessing"][1] == "Lambda mystery"
    assert [f["name"] for f in facts["unsafe"]] == ["mystery"]
    recipe = yaml.safe_load(facts["recipe"])
    assert recipe["model"]["allow"] == ["mystery"]
    assert recipe["model"]["output"] == "sigmoid"
    assert "mystery: runs any Python that its author wrote (refused unless model.allow names it)" in text


@pytest.mark.parametrize("name", ["nested.h5", "nested_saved", "binary.h5"])
def test_files_of_keras_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    import tf_keras

    model = legacy_models.nested() if "nested" in name else legacy_models.binary_with_operations()
    model.save(str(tmp_path / name))
    facts, _ = inspect(tmp_path / name, capsys)
    assert facts["written_by"].startswith(f"Keras {tf_keras.__version__}")
    assert facts["parameters"]["total"] == model.count_params()
    if name.endswith(".h5"):
        expected = sum(int(w.numpy().size) for w in model.trainable_weights)
        assert facts["parameters"]["trainable"] == expected
    assert "(None, 32, 32, 3)" in facts["inputs"][0]
    assert facts["layers"]["Conv2D"] == 2
    if name == "binary.h5":
        assert facts["inputs"][0].startswith("image uint8")
        assert any("bias_add" in text for text in facts["preprocessing"])
        assert "output" not in yaml.safe_load(facts["recipe"])["model"]
    if name == "nested_saved":
        assert yaml.safe_load(facts["recipe"])["model"]["allow"] == ["SavedModel"]


def test_the_recipe_is_one(modern, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    facts, _ = inspect(modern[0], capsys)
    (tmp_path / "modern.yaml").write_text(facts["recipe"])
    recipe = load_recipe(tmp_path / "modern.yaml")
    assert recipe.name == "modern"
    assert recipe.model.path == str(modern[0].resolve())
    assert recipe.model.preprocessing == "auto"
    assert recipe.data.splits.calibration == recipe.data.splits.test == 0.5, "300 photos are enough for both minima"


@pytest.mark.parametrize("where", ["configs", "."])
@pytest.mark.parametrize("place", ["inside", "elsewhere"])
def test_the_recipe_is_right_where_it_is_said_to_be_saved(
    modern, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, place: str
) -> None:
    here = tmp_path / "here"
    (here / where).mkdir(parents=True)
    model = (here if place == "inside" else tmp_path) / "my: colleague's.keras"
    modern[0].rename(model)
    monkeypatch.chdir(here)
    facts, text = inspect(Path(os.path.relpath(model)), capsys)
    recipe = Path(where) / "my-colleague-s.yaml"
    assert f"save it as {recipe}, fill in data.path, then: python -m pipeline run -c {recipe}" in text
    assert facts["recipe"].startswith(f"# {recipe}\n")
    recipe.write_text(facts["recipe"])
    loaded = load_recipe(recipe)
    assert (loaded.name, loaded.model.path) == ("my-colleague-s", str(model))
    assert (str(tmp_path) in facts["recipe"]) is (place == "elsewhere")
    again, _ = inspect(model, capsys)
    assert again["recipe"].startswith(f"# {recipe.with_stem('my-colleague-s-2')}\n"), "nothing is to be replaced"


def test_no_framework_is_needed_for_files(tmp_path: Path) -> None:
    import subprocess

    legacy_models.nested().save(str(tmp_path / "m.h5"))
    code = (
        "import sys; from pipeline.cli.commands import main; "
        f"status = main(['inspect', {str(tmp_path / 'm.h5')!r}]); "
        "sys.exit(status or int(any(name in sys.modules for name in ('keras', 'tensorflow', 'tf_keras'))))"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("hello")
    assert main(["inspect", str(tmp_path / "x.h5")]) == 2
    assert main(["inspect", str(tmp_path / "none.keras")]) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data beside the repository")
def test_the_shared_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    facts, _ = inspect(SHARED / "checkpoints" / "resnet20_cifar10_keras225.h5", capsys)
    assert facts["written_by"] == "Keras 2.2.5"
    assert facts["parameters"] == {"total": 274_442, "trainable": 273_066, "frozen": 1_376}
    facts, _ = inspect(SHARED / "checkpoints" / "resnet_audio_tfkeras214.h5", capsys)
    assert facts["inputs"] == ["input_2 float32 (None, 129, 8, 1)"]
    assert facts["outputs"] == ["Conv2D conv2d_35 linear"]
