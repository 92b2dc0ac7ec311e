"""Model files that ask for memory or time out of proportion are refused before anything of that is allocated."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import h5py
import numpy as np
import pytest

from export.errors import ModelError
from pipeline.keras_files.archive_checks import check_weights_file
from pipeline.keras_files.declared_sizes import least_weights
from pipeline.keras_files.read import read_model_file
from tests.bounded import Attempt, attempts, write_bomb

HELD = {"dense": (8, 4)}  # a kernel, as small as the files are


def layer(kind: str, **settings: Any) -> dict[str, Any]:
    module = "keras" if kind in ("Functional", "Sequential") else "keras.layers"
    return {"module": module, "class_name": kind, "config": {"name": kind.lower(), **settings}, "registered_name": None}


def architecture(*layers: dict[str, Any]) -> dict[str, Any]:
    return layer("Sequential", name="model", layers=list(layers))


def archive(path: Path, config: Any, weights: bool = True) -> Path:
    """A .keras archive of this architecture (text, or what becomes JSON) that holds a small kernel, or no weights."""
    held = path.with_suffix(".h5")
    with h5py.File(held, "w") as file:
        for name, shape in HELD.items():
            file[f"layers/{name}/vars/0"] = np.ones(shape, np.float32)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        target.writestr("metadata.json", json.dumps({"keras_version": "3.15.0"}))
        if weights:
            target.write(held, "model.weights.h5")
    return path


def hdf5(path: Path, config: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
        file["model_weights/dense/kernel"] = np.ones((8, 4), np.float32)
        file["model_weights/dense"].attrs["weight_names"] = [b"kernel"]
    return path


def cell(kind: str, units: int) -> dict[str, Any]:
    return layer(kind, units=units)


def read(paths: list[Path]) -> list[Attempt]:
    return attempts([("pipeline.keras_files.read:read_model_file", path, []) for path in paths], ["numpy", "h5py"])


def called(function: str, *call: Any) -> dict[str, Any]:
    return layer("TFOpLambda", function=function) | {"inbound_nodes": [list(call)]}


def doubled(depth: int, call: Any = (("x", 0, 0, {}),)) -> dict[str, Any]:
    """A model that calls another twice, which calls a third twice, and so on."""
    inner = layer("ReLU")
    for number in range(depth):
        inner = layer("Functional", layers=[inner]) | {"name": f"m{number}", "inbound_nodes": [call, call]}
    return inner


ALONE = "fill the memory"  # a layer whose own settings say it
LAYERS = {
    "Dense": (layer("Dense", units=2**31), r"Dense\) has units 2,147,483,648"),
    "Dense of a million and more": (layer("Dense", units=2**25), ALONE),
    "several": (layer("Functional", layers=[layer("Dense", units=2**19)] * 3), ALONE),
    "Conv2D": (layer("Conv2D", filters=10**9, kernel_size=[3, 3]), r"has filters 1,000,000,000"),
    "Conv2D of many": (layer("Conv2D", filters=10**6, kernel_size=[3, 3]), ALONE),
    "Conv2D of a long kernel": (layer("Conv2D", filters=1, kernel_size=[10**6, 1]), "has kernel_size 1,000,000"),
    "Conv2D of a wide kernel": (layer("Conv2D", filters=4, kernel_size=[4000, 4000]), ALONE),
    "Conv3D": (layer("Conv3D", filters=4, kernel_size=200), ALONE),
    "Convolution2D of Keras 1": (layer("Convolution2D", nb_filter=100, nb_row=2000, nb_col=2000), ALONE),
    "Dense of Keras 1": (layer("Dense", output_dim=10**8), ALONE),
    "DepthwiseConv2D": (layer("DepthwiseConv2D", depth_multiplier=10**7, kernel_size=[3, 3]), ALONE),
    "SeparableConv2D": (layer("SeparableConv2D", filters=10**8, kernel_size=[3, 3]), ALONE),
    "Embedding": (layer("Embedding", input_dim=10**9, output_dim=10**3), "has input_dim 1,000,000,000"),
    "Embedding below": (layer("Embedding", input_dim=10**6, output_dim=10**3), ALONE),
    "LSTM": (layer("LSTM", units=20_000), ALONE),
    "GRU": (layer("GRU", units=20_000), ALONE),
    "a cell": (layer("RNN", cell=cell("LSTMCell", 20_000)), ALONE),
    "ConvLSTM2D": (layer("ConvLSTM2D", filters=2_000, kernel_size=[3, 3]), ALONE),
    "attention": (layer("MultiHeadAttention", num_heads=10**4, key_dim=10**4), ALONE),
    "TimeDistributed": (layer("TimeDistributed", layer=layer("Dense", units=10**8)), ALONE),
    "Bidirectional": (layer("Bidirectional", layer=layer("LSTM", units=20_000)), ALONE),
    "a model in a model": (architecture(architecture(layer("Dense", units=10**8))), ALONE),
    "UpSampling2D": (layer("UpSampling2D", size=[10**5, 10**5]), r"has size \[100000, 100000\]"),
    "ZeroPadding2D": (
        layer("ZeroPadding2D", padding=[[10**6, 10**6], [10**6, 10**6]]),
        r"has padding \[1000000, 1000000\]",
    ),
    "Resizing": (layer("Resizing", height=10**6, width=10**6), "has height 1,000,000"),
    "Resizing below": (layer("Resizing", height=16_000, width=16_000), "height and width"),
    "RepeatVector": (layer("RepeatVector", n=10**9), "has n 1,000,000,000"),
    "Reshape": (layer("Reshape", target_shape=[10**5, 10**5]), r"has target_shape \[100000, 100000\]"),
    "CategoryEncoding": (layer("CategoryEncoding", num_tokens=10**9), "has num_tokens 1,000,000,000"),
    "Discretization": (layer("Discretization", num_bins=10**9), "has num_bins 1,000,000,000"),
    "InputLayer": (layer("InputLayer", batch_shape=[None, 10**6, 10**6, 3]), r"has batch_shape \[None, 1000000"),
    "a fixed batch": (layer("InputLayer", batch_shape=[10**6, 2, 2, 3]), "a fixed batch; size 1,000,000"),
    "FrozenGraph": (layer("FrozenGraph", shapes={"a": [10**5, 10**5]}), r"has a \[100000, 100000\]"),
    "below zero": (layer("RepeatVector", n=-(10**9)), "has n -1,000,000,000"),
    "many layers": (layer("Functional", layers=[{"class_name": "ReLU", "config": {}}] * 20_000), "10,000 layers"),
    "MelSpectrogram": (layer("MelSpectrogram", fft_length=60_000, num_mel_bins=9), "has fft_length 60,000"),
    "MelSpectrogram of both": (
        layer("MelSpectrogram", fft_length=16_000, num_mel_bins=16_000),
        r"has fft_length and num_mel_bins \[16000, 16000\]",
    ),
    "STFTSpectrogram": (layer("STFTSpectrogram", frame_length=10**5), "has frame_length 100,000"),
    "RandomGaussianBlur": (layer("RandomGaussianBlur", kernel_size=[16_000, 16_000]), r"has kernel_size \[16000"),
    "UpSampling2D below": (layer("UpSampling2D", size=[10_000, 10_000]), r"has size \[10000, 10000\]"),
    "Hashing": (layer("Hashing", num_bins=10**8, output_mode="one_hot"), "has num_bins 100,000,000"),
    "CategoryEncoding below": (layer("CategoryEncoding", num_tokens=10**8), "has num_tokens 100,000,000"),
    "RandAugment": (layer("RandAugment", num_ops=10**6), "has num_ops 1,000,000"),
    "SpectralNormalization": (layer("SpectralNormalization", power_iterations=10**6), "has power_iterations 1,000,000"),
    "eye": (called("eye", "_CONSTANT_VALUE", -1, 60_000, {}), "in a call of eye 60,000"),
    "eye below": (called("linalg.eye", ["x", 0, 0, {"num_rows": 9000}]), "in a call of linalg.eye 9,000"),
    "fill": (called("fill", ["_CONSTANT_VALUE", -1, [60_000, 60_000], {}]), r"inbound_nodes \[60000, 60000\]"),
    "one_hot": (called("one_hot", ["x", 0, 0, {"depth": 10**7}]), "in a call of one_hot 10,000,000"),
    "linspace": (called("linspace", ["x", 0, 0, {"num": 10**7}]), "in a call of linspace 10,000,000"),
    "range": (called("range", ["x", 0, 0, {"limit": 1e8}]), "in a call of range 100,000,000"),
    "range of small steps": (called("range", ["x", 0, 0, {"limit": 1, "delta": 1e-8}]), "from 1e-08 to 1"),
    "Repeat of Keras 3": (
        layer("Repeat", repeats=4) | {"inbound_nodes": [{"args": [{"class_name": "__keras_tensor__"}, 10**7]}]},
        "in a call of Repeat 10,000,000",
    ),
    "a layer called often": (layer("ReLU") | {"inbound_nodes": [[["x", 0, 0, {}]]] * 20_001}, "20,001 calls"),
    "a model called twice in one called twice": (doubled(20), r"in layer \w+ \(Functional\): \d\d,\d\d\d calls"),
    "the same in Keras 3": (doubled(20, {"args": [], "kwargs": {}}), r"\(Functional\): \d\d,\d\d\d calls"),
    "the same within layers that wrap": (
        layer("TimeDistributed", layer=layer("Bidirectional", layer=doubled(20))),
        r"\(Functional\): \d\d,\d\d\d calls",
    ),
    "a constant of an operation": (
        layer("TFOpLambda", function="tile", inbound_nodes=[["x", 0, 0, {"multiples": [10**5, 10**5]}]]),
        r"multiples \[100000, 100000\]",
    ),
}
TEXTS = {
    "nested": ('{"class_name": "Model", "config": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested more than"),
    "many values": ('{"class_name": "Model", "config": [' + "[]," * 2**20 + "[]]}", "values, where at most"),
    "digits": ('{"class_name": "Model", "config": ' + "1" * 10**6 + "}", "digits"),
}


def test_architectures_that_ask_for_more_than_the_file_holds(tmp_path: Path) -> None:
    found, paths = [], []
    for name, (part, message) in LAYERS.items():
        paths += [archive(tmp_path / f"{len(paths)}.keras", architecture(part))]
        found += [(name, message)]
    for name, (text, message) in TEXTS.items():
        paths += [archive(tmp_path / f"{len(paths)}.keras", text), hdf5(tmp_path / f"{len(paths)}h.h5", text)]
        found += [(name, message)] * 2
    dense = architecture(layer("Dense", units=10**8))
    paths += [archive(tmp_path / "none.keras", dense, weights=False), hdf5(tmp_path / "old.h5", dense)]
    found += [("no weights", "the file holds 0"), ("HDF5", "the file holds 32")]
    paths += [write_bomb(archive(tmp_path / "lies.keras", dense), "metadata.txt", 10**9, said=10)]
    found += [("a member that says less", ALONE)]
    for (name, message), path, attempt in zip(found, paths, read(paths)):
        assert attempt.error == "ModelError", (name, attempt)
        with pytest.raises(ModelError, match=message):
            raise ModelError(attempt.message)
        assert str(path) in attempt.message, name
        assert len(attempt.message) < 1000, name
        assert attempt.bytes_read < 8 * 2**20, name
        assert attempt.seconds < 10, name


def test_models_that_call_one_another_as_people_build_them(tmp_path: Path) -> None:
    """Two pictures through one backbone of a thousand layers, ten times over; constants as they are used."""
    call = [["x", 0, 0, {}]]
    backbone = layer("Functional", layers=[layer("ReLU")] * 1000) | {"inbound_nodes": [call, call]}
    parts = [
        *[backbone] * 8,
        layer("LSTM", units=4, unroll=True),
        layer("UpSampling2D", size=[32, 32]),
        layer("MelSpectrogram", fft_length=2048, num_mel_bins=128),
        called("clip_by_value", ["x", 0, 0, {"clip_value_min": 0, "clip_value_max": 2**24}]),
        called("tile", ["x", 0, 0, {"multiples": [1, 1, 1, 3]}]),
        called("range", ["_CONSTANT_VALUE", -1, 0, {"limit": 50_176, "delta": 1}]),
        called("one_hot", ["x", 0, 0, {"depth": 21_841}]),
        called("fill", ["_CONSTANT_VALUE", -1, [512, 512, 64], {"value": -1e9}]),
    ]
    (attempt,) = read([archive(tmp_path / "m.keras", architecture(*parts))])
    assert not attempt.error, attempt


def test_files_that_promise_more_than_they_hold(tmp_path: Path) -> None:
    sound = architecture(layer("Dense", name="dense", units=4))
    found: list[tuple[Path, str]] = []

    def member(name: str, said: int | None, message: str) -> None:
        path = tmp_path / f"{len(found)}.keras"
        with zipfile.ZipFile(path, "w") as target:
            if name != "config.json":
                target.writestr("config.json", json.dumps(sound))
        found.append((write_bomb(path, name, 4_800_000_000, b'{"a": 1}', said), message))

    for name in ("config.json", "metadata.json", "model.weights.h5"):
        member(name, None, "unpack to 4,800,000,")
        member(name, 8, "holds more than the 8 bytes")
    many = archive(tmp_path / "many.keras", sound)
    with zipfile.ZipFile(many, "a") as target:
        for i in range(20_000):
            target.writestr(f"assets/{i:060}", b"")
    found.append((many, "a table of contents of more than"))

    def edited(message: str, change: Any) -> None:
        path = hdf5(tmp_path / f"{len(found)}.h5", sound)
        with h5py.File(path, "a") as file:
            change(file)
        found.append((path, message))

    text = h5py.string_dtype()
    edited("many holds 2,000 values", lambda f: f["model_weights"].attrs.create("many", ["x"] * 2_000, dtype=text))
    edited("holds 2,000 texts", lambda f: f.create_dataset("t", data=["x"] * 2_000, dtype=text))
    edited("unpack to", lambda f: f.create_dataset("c", (8,), "f4", maxshape=(None,), chunks=(2**29,)))
    edited("unpack to", lambda f: f.create_dataset("z", (2**30,), "f4", chunks=(2**20,), compression="gzip"))
    edited("damaged: .*nested more than", lambda f: f.attrs.__setitem__("model_config", "[" * 100_000))
    for (path, message), attempt in zip(found, read([path for path, _ in found])):
        assert attempt.error == "ModelError", (path, message, attempt)
        with pytest.raises(ModelError, match=message):
            raise ModelError(attempt.message)
        assert attempt.bytes_read < 16 * 2**20, path
        assert attempt.seconds < 10, path


def test_weights_of_a_backbone_promise_too(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("conv1/conv1/kernel:0", (2**15, 2**15), "f4", chunks=(2**10, 2**10))
    with pytest.raises(ModelError, match="unpack to"):
        check_weights_file(tmp_path / "w.h5")


def test_weights_of_layers_with_a_slash_in_their_names_are_listed(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "m.h5", architecture(layer("Dense", name="block/dense", units=4)))
    with h5py.File(path, "a") as file:
        root = file["model_weights"]
        root["block/dense/block/dense/kernel:0"] = np.ones((8, 4), np.float32)
        root["block/dense"].attrs["weight_names"] = [b"block/dense/kernel:0"]
        root.attrs["layer_names"] = [b"dense", b"block/dense"]
    assert [(w.layer, w.shape) for w in read_model_file(path).weights] == [("dense", (8, 4)), ("dense", (8, 4))]


def test_names_of_weights_in_several_attributes(tmp_path: Path) -> None:
    """Keras divides what is too long for one; a model with many layers in one nested model is none without weights."""
    path = hdf5(tmp_path / "m.h5", architecture(layer("Dense", name="dense", units=4)))
    with h5py.File(path, "a") as file:
        group = file["model_weights/dense"]
        del group.attrs["weight_names"]
        group.attrs["weight_names0"], group.attrs["weight_names1"] = [b"kernel"], [b"bias"]
        group["bias"] = np.ones(4, np.float32)
    read_file = read_model_file(path)
    assert [w.shape for w in read_file.weights] == [(8, 4), (4,)]
    assert read_file.held == 36


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Dense", {"units": 7}),
        ("Conv1D", {"filters": 6, "kernel_size": 3}),
        ("Conv2D", {"filters": 6, "kernel_size": 3, "groups": 2}),
        ("Conv3D", {"filters": 6, "kernel_size": (1, 2, 3)}),
        ("Conv2DTranspose", {"filters": 6, "kernel_size": 3}),
        ("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2}),
        ("SeparableConv2D", {"filters": 6, "kernel_size": 3}),
        ("ConvLSTM2D", {"filters": 3, "kernel_size": 3}),
        ("LSTM", {"units": 5}),
        ("GRU", {"units": 5}),
        ("SimpleRNN", {"units": 5}),
        ("Embedding", {"input_dim": 9, "output_dim": 4}),
        ("MultiHeadAttention", {"num_heads": 2, "key_dim": 3}),
        ("GroupQueryAttention", {"head_dim": 3, "num_query_heads": 2, "num_key_value_heads": 1}),
    ],
)
def test_no_layer_has_fewer_weights(kind: str, settings: dict[str, Any]) -> None:
    import keras

    made = getattr(keras.layers, kind)(**settings)
    rank = 5 if "LSTM2D" in kind else {"1D": 3, "2D": 4, "3D": 5}.get(kind.replace("Transpose", "")[-2:], 3)
    shape = (None, *[8] * (rank - 2), 4)
    if kind == "Embedding":
        made.build((None, 3))
    elif kind.endswith("Attention"):
        made.build(shape, shape)
    else:
        made.build(shape)
    config = json.loads(json.dumps(made.get_config()))
    assert 0 < least_weights(kind, config) <= made.count_params()


BUILT = {  # each layer is modest by itself; what the next makes of it is not
    "weights": (
        [("UpSampling2D", {"size": [16, 16]}), ("Flatten", {}), ("Dense", {"units": 1000})],
        "whose layer dense asks for 3,145,728,000 values; the file holds 32",
    ),
    "channels": (
        [("Conv2D", {"filters": 60_000, "kernel_size": [1, 1]}), ("BatchNormalization", {}), ("Conv2DTranspose", {})],
        "whose layer conv2dtranspose asks for 3,600,000,000 values",
    ),
    "pixels": (
        [("UpSampling2D", {"size": [100, 100]}), ("ZeroPadding2D", {"padding": [[5000, 5000], [5000, 5000]]})],
        r"whose layer zeropadding2d makes \[16400, 16400, 3\]",
    ),
}


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_layers_that_ask_for_more_because_of_their_input(tmp_path: Path, name: str, suffix: str) -> None:
    from pipeline.keras_files.load import load_model

    parts, message = BUILT[name]
    shape = "batch_shape" if suffix == "keras" else "batch_input_shape"
    layers = [layer("InputLayer", **{shape: [None, 64, 64, 3]})]
    for kind, settings in parts:  # type: ignore[attr-defined]
        again = {"filters": 60_000, "kernel_size": [1, 1]} if kind == "Conv2DTranspose" else settings
        layers.append(layer(kind, **again))
    path = (archive if suffix == "keras" else hdf5)(tmp_path / f"m.{suffix}", architecture(*layers))
    with pytest.raises(ModelError, match=message):
        load_model(path)


def unrolled(layers: Any, steps: int, kind: str) -> Any:
    if kind == "TimeDistributed":
        return layers.TimeDistributed(layers.TimeDistributed(layers.Dense(3))), (steps, 300, 4)
    made = getattr(layers, kind)(3, unroll=True)
    return (layers.Bidirectional(made) if kind == "GRU" else made), (steps, 4)


@pytest.mark.parametrize("kind", ["TimeDistributed", "LSTM", "GRU", "SimpleRNN"])
def test_loops_that_are_written_out_end(kind: str) -> None:
    import keras
    import tf_keras

    from pipeline.keras_files.load_guards import weight_budget

    for module in (keras, tf_keras) if kind != "TimeDistributed" else (keras,):  # Keras 2 runs that at once
        with weight_budget(100, "m.keras", keras2=True):
            few, shape = unrolled(module.layers, 3, kind)
            few(module.Input(shape))
            many, shape = unrolled(module.layers, 30_000, kind)
            with pytest.raises(ModelError, match="00 calls in 30,000 steps"):
                many(module.Input(shape))


@pytest.mark.parametrize("kind", ["Attention", "AdditiveAttention", "MultiHeadAttention"])
def test_scores_of_attention_are_a_tensor_too(kind: str) -> None:
    import keras

    from pipeline.keras_files.load_guards import check_tensors

    def model(positions: int) -> Any:
        x = keras.Input((positions, 4))
        many = kind == "MultiHeadAttention"
        return keras.Model(
            x, keras.layers.MultiHeadAttention(2, 4)(x, x) if many else getattr(keras.layers, kind)()([x, x])
        )

    check_tensors(model(4096), "m.keras")
    with pytest.raises(ModelError, match="50176, 50176]"):
        check_tensors(model(224 * 224), "m.keras")


def test_keras_is_as_it_was_after_a_budget() -> None:
    import keras
    import tf_keras

    from pipeline.keras_files.load_guards import weight_budget

    def methods() -> list[Any]:
        loops = (keras.layers.TimeDistributed.build, keras.layers.RNN.build, tf_keras.layers.RNN.build)
        return [keras.Layer.add_weight, tf_keras.layers.Layer.add_weight, *loops]

    before = methods()
    with weight_budget(0, "m.keras", keras2=True):
        keras.layers.Dense(3).build((None, 4))
        tf_keras.layers.Dense(3).build((None, 4))
        with pytest.raises(ModelError, match="asks for 2,000,000 values"):
            tf_keras.layers.Dense(1000).build((None, 2000))
    assert methods() == before
