"""A repository answers as `infer` does, to the bit, and runs with nothing else of this project."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.runners.onnxruntime import OnnxRunner
from tests.fakes import triton
from tests.fakes.triton import TritonError, TritonModelException, load, run_ensemble
from tests.made_records import make_hop, write_verdict
from tests.pipeline.inference.deployments import CARD, make_deployment, make_photos
from tests.pipeline.triton.recipes import FP32, make_recipe, write_onnx, write_repository


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Photos, and what photos are at times: turned by EXIF, grey, transparent, of 16 bits, small."""
    contents = [path.read_bytes() for path in make_photos(tmp_path_factory.mktemp("photos"), 4)]
    picture = Image.open(io.BytesIO(contents[0]))
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        contents.append(encoded(picture, "JPEG", exif=exif, quality=90))
    transparent = picture.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(picture.size))
    grey = np.linspace(0, 65535, 24 * 20, dtype=np.uint16).reshape(20, 24)
    return [
        *contents,
        encoded(picture.convert("L"), "JPEG"),
        encoded(transparent),
        encoded(picture.convert("P"), "GIF"),
        encoded(Image.fromarray(grey)),
        encoded(picture.resize((1, 1))),
    ]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    assert write_repository(make_recipe(folder, infer={"batch_size": 4}), folder / "repository") == 0
    return folder / "repository"


def test_the_ensemble_answers_as_the_project_does_to_the_bit(repository: Path, photos: list[bytes]) -> None:
    answers = run_ensemble(repository, "tiny_files", photos)
    pixels = np.stack([CARD.decode.pixels(photo) for photo in photos])
    with OnnxRunner(repository / "tiny" / "1" / "model.onnx", max_batch=4) as runner:
        expected = runner.infer(pixels)
    assert np.array_equal(answers["logits"], expected.logits)
    assert np.array_equal(answers["probabilities"], expected.probabilities)
    assert len(set(answers["probabilities"].argmax(axis=1).tolist())) > 1  # or all would agree on nothing


def test_the_best_classes_are_those_of_the_rows_of_infer(repository: Path, photos: list[bytes], tmp_path: Path) -> None:
    with make_deployment(tmp_path, batch_size=4, top_k=4).open() as classifier:
        rows = classifier.contents(photos)
    probabilities = run_ensemble(repository, "tiny_files", photos)["probabilities"]
    for row, answer in zip(rows, probabilities, strict=True):
        assert row.status == "ok"
        assert row.classes[0] == CARD.classes[answer.argmax()]
        assert list(row.probabilities) == sorted(answer.tolist(), reverse=True)


def test_the_step_that_decodes_gives_the_pixels_of_the_project(repository: Path, photos: list[bytes]) -> None:
    model = load(repository, "tiny_decode")
    for photo in photos:
        pixels = model.run({"files": np.array([[photo]], object)})["images"]
        assert np.array_equal(pixels[0], CARD.decode.pixels(photo))


def test_the_modules_that_decode_are_those_of_the_repository(repository: Path) -> None:
    decode = type(load(repository, "tiny_decode").model._decode).decode
    assert Path(decode.__code__.co_filename).is_relative_to(repository)
    assert not Path(type(CARD.decode).decode.__code__.co_filename).is_relative_to(repository)


def test_a_bad_image_is_an_error_of_its_request_alone_and_is_named(repository: Path, photos: list[bytes]) -> None:
    for bad, said in (
        (b"no image", "image 1 of 2: not_an_image: not an image that Pillow can read"),
        (b"", "image 1 of 2: not_an_image: the file is empty"),
        (photos[0][:60], "image 1 of 2: damaged: "),
    ):
        with pytest.raises(TritonError, match=said) as caught:
            run_ensemble(repository, "tiny_files", [photos[0], bad])
        assert caught.value.code == TritonError.INVALID_ARG

    model = load(repository, "tiny_decode").model
    requests = [
        triton.InferenceRequest([triton.Tensor("files", np.array([[content]], object))])
        for content in (photos[0], b"no image", photos[1])
    ]
    assert [response.error is None for response in model.execute(requests)] == [True, False, True]


def test_a_file_larger_than_the_recipe_allows_is_refused(tmp_path: Path, photos: list[bytes]) -> None:
    assert write_repository(make_recipe(tmp_path, infer={"max_file_mib": 1}), tmp_path / "out") == 0
    with pytest.raises(TritonError, match="too_large: 1,048,577 bytes, more than the 1,048,576 allowed"):
        run_ensemble(tmp_path / "out", "tiny_files", [photos[0].ljust(2**20 + 1, b"\0")])


def test_int8_is_computed_as_it_was_verified(tmp_path: Path, photos: list[bytes]) -> None:
    context = make_recipe(tmp_path)
    name = write_onnx(context, "int8")
    write_verdict(context.root, make_hop(FP32), make_hop(name))
    assert write_repository(context, tmp_path / "out", "--precision", "int8") == 0
    assert triton.read_config(tmp_path / "out", "tiny").optimization.graph.level == 2
    pixels = np.stack([CARD.decode.pixels(photo) for photo in photos])
    with OnnxRunner(context.root / name, precision="int8", max_batch=32) as runner:
        expected = runner.infer(pixels).logits
    assert np.array_equal(run_ensemble(tmp_path / "out", "tiny_files", photos)["logits"], expected)


ALONE = """
import importlib.util, json, sys, types
import numpy as np
folder, photo, config = sys.argv[1:]
utils = types.ModuleType("triton_python_backend_utils")
utils.TritonModelException = utils.TritonError = ValueError
utils.get_input_tensor_by_name = lambda request, name: request
utils.Tensor = lambda name, values: values
utils.InferenceResponse = lambda output_tensors: output_tensors[0]
sys.modules[utils.__name__] = utils
for name in ("pipeline", "export"):
    assert importlib.util.find_spec(name) is None, name
sys.path.append(folder)
import model
made = model.TritonPythonModel()
made.initialize({"model_config": config})
class Files:
    def as_numpy(self):
        return np.array([[open(photo, "rb").read()]], object)
print(json.dumps(made.execute([Files()])[0].tolist()))
"""


def test_the_model_runs_in_a_python_without_this_project(repository: Path, photos: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(photos[4])
    config = triton.json_format.MessageToJson(
        triton.read_config(repository, "tiny_decode"), preserving_proto_field_name=True
    )
    folder = repository / "tiny_decode" / "1"
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder), str(tmp_path / "photo"), config],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.array(json.loads(done.stdout))[0], CARD.decode.pixels(photos[4]))


def copied(repository: Path, tmp_path: Path) -> Path:
    shutil.copytree(repository, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_server_that_decodes_to_other_pixels_does_not_load_the_model(repository: Path, tmp_path: Path) -> None:
    place = copied(repository, tmp_path)
    probe = place / "tiny_decode" / "1" / "probe.jpg"
    picture = np.asarray(Image.open(probe)).copy()
    probe.write_bytes(encoded(Image.fromarray(255 - picture), "JPEG"))
    with pytest.raises(TritonModelException, match=r"to decode to the pixels .* Pillow and simplejpeg"):
        load(place, "tiny_decode")


def test_a_server_without_a_package_says_which(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(TritonModelException, match=r"Expected the package simplejpeg in the server's Python"):
        load(repository, "tiny_decode")
