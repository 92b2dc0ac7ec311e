import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.peers.quantizers import command as module
from benchmarks.peers.quantizers.command import run_peer
from benchmarks.peers.quantizers.tools import PixelReader, Share, placement, read_images, stride
from export.errors import ProjectError
from export.files import ROOT
from tests import tiny_onnx


def save_pixels(path: Path, pixels: np.ndarray) -> Path:
    np.savez(path, pixels=pixels)
    return path


def job(folder: Path, name: str = "modelopt-max") -> dict[str, Any]:
    model = tiny_onnx.write(folder / "model.onnx")
    images = save_pixels(folder / "pixels.npz", tiny_onnx.pixels(5))
    (folder / "out").mkdir()
    return {
        "name": name, "model": model, "images": images, "out": folder / "out", "limit": 4, "seed": 0, "batch": 3,
    }  # fmt: skip


def as_tool(monkeypatch: pytest.MonkeyPatch, tool: Any) -> None:
    monkeypatch.setattr(module, "TOOLS", {"modelopt": tool, "onnxruntime": tool})


def write_int8(_: Any, __: Path, reader: PixelReader, out: Path) -> dict[str, Any]:
    while reader.get_next() is not None:
        pass
    tiny_onnx.write(out, "int8")
    return {"setting": 1}


def test_the_reader_gives_every_image_once_and_again_after_a_rewind() -> None:
    pixels = tiny_onnx.pixels(5)
    reader = PixelReader("images", pixels, 2, "test")
    assert len(reader.get_first()["images"]) == 2
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([step["images"] for step in reader]), pixels)
        reader.rewind()
    reader.set_range(1, 4)
    np.testing.assert_array_equal(np.concatenate([step["images"] for step in reader]), pixels[1:4])


@pytest.mark.parametrize(("images", "expected"), [(256, 32), (500, 25), (7, 7), (37, 1), (1, 1)])
def test_the_stride_divides_the_images(images: int, expected: int) -> None:
    assert stride(images) == expected


def test_placement_counts_what_is_quantised() -> None:
    found = placement(tiny_onnx.classifier("int8"))
    assert found.convolutions == Share(1, 1)
    assert found.int8["GlobalAveragePool"] == Share(0, 1)
    assert (found.activation_pairs, found.quantized_biases, found.nonzero_zero_points) == (1, 0, 0)
    assert placement(tiny_onnx.classifier()).convolutions == Share(0, 1)


def test_placement_names_what_tensorrt_refuses() -> None:
    model = tiny_onnx.classifier("int8")
    zero = next(one for one in model.graph.initializer if one.name == "x_zero")
    zero.CopyFrom(onnx.numpy_helper.from_array(np.int8(3), "x_zero"))
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    model.graph.node.append(onnx.helper.make_node("DequantizeLinear", ["b", "s"], ["bias_dq"], "bias"))
    conv.input[2] = "bias_dq"
    found = placement(model)
    assert found.quantized_biases == 1
    assert found.nonzero_zero_points == 2


def test_the_choice_of_images_is_seeded(tmp_path: Path) -> None:
    model, pixels = tiny_onnx.classifier(), tiny_onnx.pixels(9)
    path = save_pixels(tmp_path / "pixels.npz", pixels)
    name, chosen = read_images(path, model, 4, 0)
    assert name == "images"
    np.testing.assert_array_equal(chosen, pixels[np.random.default_rng(0).permutation(9)[:4]])


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 5, 5, 3), np.uint8), np.zeros((2, 16, 16, 3), np.float32), np.zeros((0, 16, 16, 3), np.uint8)],
)
def test_images_that_do_not_fit_the_model_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    path = save_pixels(tmp_path / "pixels.npz", pixels)
    with pytest.raises(ProjectError, match="Expected pixels of type uint8"):
        read_images(path, tiny_onnx.classifier(), 4, 0)


def test_a_file_without_pixels_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", other=np.zeros(1))
    with pytest.raises(ProjectError, match="the array 'pixels'"):
        read_images(tmp_path / "other.npz", tiny_onnx.classifier(), 4, 0)


def test_a_peer_leaves_its_model_and_a_sidecar_and_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    as_tool(monkeypatch, write_int8)
    arguments = job(tmp_path)
    run_peer(**arguments)
    assert sorted(one.name for one in arguments["out"].iterdir()) == ["modelopt-max.json", "modelopt-max.onnx"]
    sidecar = json.loads((arguments["out"] / "modelopt-max.json").read_text())
    assert (sidecar["tool"], sidecar["method"], sidecar["images"]) == ("modelopt", "max", 4)
    assert sidecar["settings"] == {"setting": 1}
    assert sidecar["placement"]["int8"]["Conv"] == {"int8": 1, "of": 1}


def test_a_peer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(*_: Any) -> dict[str, Any]:
        raise ValueError("no scale")

    as_tool(monkeypatch, fail)
    arguments = job(tmp_path)
    with pytest.raises(ProjectError, match="ValueError: no scale"):
        run_peer(**arguments)
    assert list(arguments["out"].iterdir()) == []


def test_a_peer_that_did_not_read_the_images_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    def ignore(_: Any, __: Path, reader: PixelReader, out: Path) -> dict[str, Any]:
        reader.get_first()
        tiny_onnx.write(out, "int8")
        return {}

    as_tool(monkeypatch, ignore)
    arguments = job(tmp_path)
    with pytest.raises(ProjectError, match="calibrate on 4 images"):
        run_peer(**arguments)
    assert list(arguments["out"].iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = ["--model", str(tmp_path / "no.onnx"), "--images", str(tmp_path / "no.npz"), "--out", str(tmp_path)]
    assert module.main(options) == 2
    assert "no.onnx" in caplog.text


def test_the_command_as_people_start_it(tmp_path: Path) -> None:
    """In a process of its own, which starts another one for the peer."""
    model = tiny_onnx.write(tmp_path / "model.onnx")
    images = save_pixels(tmp_path / "pixels.npz", tiny_onnx.pixels(5))
    words = ["--model", str(model), "--images", str(images), "--out", str(tmp_path / "out"), "--peer", "ort-minmax"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.quantizers", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout.splitlines()[-1])["done"]) == ["ort-minmax"]
    assert (tmp_path / "out" / "ort-minmax.onnx").is_file()
