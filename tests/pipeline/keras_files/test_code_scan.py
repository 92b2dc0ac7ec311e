"""Files that would run code, read other files or fill the memory are refused before anything of that happens."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from export.errors import ModelError
from pipeline.keras_files.code_scan import refuse_unsafe, scan_config
from pipeline.keras_files.load import load_model
from pipeline.keras_files.read import read_model_file


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a sound model.keras and model.h5."""
    folder = tmp_path_factory.mktemp("whole")
    x = inputs = layers.Input((16, 16, 3))
    for layer in (layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2, activation="softmax")):
        x = layer(x)
    model = keras.Model(inputs, x)
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    return folder


@pytest.fixture
def files(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "files")
    return tmp_path / "files"


def edit(path: Path, change) -> Path:
    """Change the members of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def edit_config(path: Path, change) -> Path:
    def apply(members):
        config = json.loads(members["config.json"])
        change(config)
        members["config.json"] = json.dumps(config)

    return edit(path, apply)


def test_sound_files_are_read(files: Path) -> None:
    for name in ("model.keras", "model.h5"):
        file = read_model_file(files / name)
        assert file.findings == ()
        assert sum(weight.size for weight in file.weights) == 1682


def test_links_to_other_files_are_refused(files: Path, tmp_path: Path) -> None:
    with h5py.File(files / "model.h5", "a") as file:
        file["model_weights/elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(ModelError, match="/model_weights/elsewhere is a link to another file"):
        load_model(files / "model.h5")


def test_data_kept_in_other_files_is_refused(files: Path, tmp_path: Path) -> None:
    with h5py.File(files / "model.h5", "a") as file:
        file.create_dataset("stolen", (4,), "f4", external=[(str(tmp_path / "secret"), 0, 16)])
    with pytest.raises(ModelError, match="/stolen keeps its data in other files"):
        load_model(files / "model.h5")


def test_virtual_data_is_refused(files: Path, tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (4,))
    with h5py.File(files / "model.h5", "a") as file:
        file.create_virtual_dataset("stolen", layout)
    with pytest.raises(ModelError, match="other files"):
        load_model(files / "model.h5")


def test_shapes_beyond_the_file_are_refused(files: Path) -> None:
    with h5py.File(files / "model.h5", "a") as file:
        file.create_dataset("bomb", (2**20, 2**20), "f4", chunks=(1024, 1024))
    with pytest.raises(ModelError, match=r"at dataset /bomb, shape \(1048576, 1048576\)"):
        load_model(files / "model.h5")


def test_the_same_inside_an_archive(files: Path, tmp_path: Path) -> None:
    def change(members):
        (tmp_path / "w.h5").write_bytes(members["model.weights.h5"])
        with h5py.File(tmp_path / "w.h5", "a") as file:
            file["layers/elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
        members["model.weights.h5"] = (tmp_path / "w.h5").read_bytes()

    with pytest.raises(ModelError, match="link to another file"):
        load_model(edit(files / "model.keras", change))


def test_a_ring_of_groups_ends(files: Path) -> None:
    with h5py.File(files / "model.h5", "a") as file:
        file["model_weights/ring"] = file["model_weights"]
        file["soft"] = h5py.SoftLink("/soft")
    assert len(read_model_file(files / "model.h5").weights) == 4


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("assets/zeros", b"\0" * 50_000_000, "unpack to 50,"),
        ("../outside", b"x", "members inside"),
        ("/etc/outside", b"x", "members inside"),
        ("model.weights.npz", b"x", "pickle"),
    ],
)
def test_archives_that_are_traps(files: Path, name: str, content: bytes, found: str) -> None:
    with pytest.raises(ModelError, match=found):
        load_model(edit(files / "model.keras", lambda members: members.update({name: content})))


def test_other_files_are_named(files: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["test_set_x"] = np.zeros(3)
    keras.saving.load_model(files / "model.keras").save_weights(tmp_path / "w.weights.h5")
    (tmp_path / "text.h5").write_text("not a model")
    cut = (files / "model.keras").read_bytes()[:-100]
    (tmp_path / "cut.keras").write_bytes(cut)
    for name, found in {
        "a.zip": "config.json.*readme.txt",
        "data.h5": "without a model .test_set_x",
        "w.weights.h5": "weights only",
        "text.h5": "which is none",
        "cut.keras": "which is none|damaged",
        "none.h5": "nothing there",
        ".": "folder without saved_model.pb",
    }.items():
        with pytest.raises(ModelError, match=found):
            load_model(tmp_path / name)


def lambda_model(path: Path) -> Path:
    x = inputs = layers.Input((16, 16, 3))
    for layer in (layers.Lambda(lambda t: t / 255, name="preprocess"), layers.Flatten(), layers.Dense(2)):
        x = layer(x)
    keras.Model(inputs, x).save(path)
    return path


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_lambda_runs_only_if_it_is_named(tmp_path: Path, name: str) -> None:
    path = lambda_model(tmp_path / name)
    for allow in ((), ("other",)):
        with pytest.raises(ModelError, match=r"a Lambda layer preprocess.*model\.allow=\[.*preprocess\]"):
            load_model(path, allow)
    assert load_model(path, ("preprocess",)).get_layer("preprocess") is not None


def layer_of(**entry) -> dict:
    return {"class_name": "Functional", "module": "keras", "config": {"layers": [entry]}}


@pytest.mark.parametrize(
    ("config", "kind", "name"),
    [
        (layer_of(class_name="MyBlock", config={"name": "b"}), "custom", "MyBlock"),
        (layer_of(class_name="B", registered_name="Mine>B", module=None, config={}), "custom", "Mine>B"),
        (layer_of(class_name="Popen", module="subprocess", config={}), "custom", "subprocess.Popen"),
        (
            layer_of(class_name="TFSMLayer", module="keras.layers", config={"name": "t"}),
            "custom",
            "keras.layers.TFSMLayer",
        ),
        (
            layer_of(class_name="TorchModuleWrapper", module="keras.layers", config={}),
            "custom",
            "keras.layers.TorchModuleWrapper",
        ),
        (layer_of(class_name="function", module="keras.utils", config="get_file"), "code", "get_file"),
        (layer_of(class_name="load_model", module="keras.models", config={}), "code", "keras.models.load_model"),
        (layer_of(class_name="Config", module="keras.config", config={}), "custom", "keras.config.Config"),
        (
            layer_of(class_name="TFOpLambda", config={"name": "w", "function": "io.write_file"}),
            "operation",
            "io.write_file",
        ),
        (
            layer_of(
                class_name="Dense",
                module="keras.layers",
                config={"activation": {"class_name": "__lambda__", "config": {"code": "x"}}},
            ),
            "Lambda",
            "__lambda__",
        ),
    ],
)
def test_what_is_no_part_of_keras_is_found(config: dict, kind: str, name: str) -> None:
    findings = scan_config(config)
    assert [(f.kind, f.name) for f in findings] == [(kind, name)]
    with pytest.raises(ModelError, match="Expected a model"):
        refuse_unsafe(findings, (), "m.keras")
    if not findings[0].allowable:
        with pytest.raises(ModelError, match=r"model\.export"):
            refuse_unsafe(findings, (name,), "m.keras")


def test_a_custom_class_in_an_archive_never_reaches_keras(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(config):
        config["config"]["layers"][1] |= {"module": "subprocess", "class_name": "Popen", "config": {"args": ["true"]}}

    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("Keras was asked"))
    with pytest.raises(ModelError, match=r"subprocess\.Popen"):
        load_model(edit_config(files / "model.keras", change))


@pytest.mark.parametrize("application", ["ResNet50", "ResNet50V2"])
def test_keras_own_models_are_sound(application: str) -> None:
    model = getattr(keras.applications, application)(weights=None, input_shape=(64, 64, 3))
    assert scan_config(json.loads(model.to_json())) == []


def test_keras_own_layers_and_operations_are_sound() -> None:
    inputs = layers.Input((16, 16, 3))
    x = keras.applications.resnet.preprocess_input(inputs)
    x = layers.Conv2D(4, 3, kernel_regularizer="l2", kernel_initializer="he_normal", activation="gelu")(x)
    x = keras.ops.relu(layers.BatchNormalization(beta_constraint="non_neg")(x)) * 2.0
    x = layers.Activation(keras.activations.swish)(layers.GlobalAveragePooling2D()(x))
    assert scan_config(json.loads(keras.Model(inputs, keras.ops.softmax(x)).to_json())) == []


def test_a_saved_model_runs_only_if_it_is_allowed(tmp_path: Path) -> None:
    import tensorflow as tf

    class Writes(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3))])
        def __call__(self, x):
            tf.io.write_file(str(tmp_path / "written"), "x")
            return {"scores": tf.reduce_mean(x, [1, 2])}

    module = Writes()
    tf.saved_model.save(module, str(tmp_path / "folder"), signatures={"serving_default": module.__call__})
    (tmp_path / "written").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"SavedModel: a program.*WriteFile: reads or writes files"):
        load_model(tmp_path / "folder")
    with pytest.raises(ModelError, match=r"WriteFile.*model\.allow=\[SavedModel, WriteFile\]"):
        load_model(tmp_path / "folder", ("SavedModel",))
    assert not (tmp_path / "written").exists()
    (tmp_path / "folder" / "saved_model.pb").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="damaged"):
        load_model(tmp_path / "folder", ("SavedModel",))


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_a_zip_hidden_behind_another_format_is_refused(tmp_path: Path, suffix: str) -> None:
    """What is checked must be what Keras reads; a file of two formats could show each a different model."""
    path = tmp_path / f"two.{suffix}"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ModelError, match="Expected one format"):
        read_model_file(path)
