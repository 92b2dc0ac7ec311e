"""The Open Inference Protocol as Triton's own client speaks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pipeline.serving.protocol import FILES, PIXELS
from tests.pipeline.server.servers import Running
from tests.tiny_onnx import CLASSES, SIZE

tritonhttp = pytest.importorskip("tritonclient.http")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    made = tritonhttp.InferenceServerClient(f"127.0.0.1:{server.port}", connection_timeout=10, network_timeout=10)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pixels(server: Running) -> np.ndarray:
    decode = server.deployment.card.decode.decode
    return np.stack([decode(photo).pixels.copy() for photo in server.photos])


@pytest.fixture(scope="module")
def expected(server: Running, pixels: np.ndarray) -> Any:
    """What the file answers for each image alone."""
    with server.deployment.open() as classifier:
        outputs = [classifier.runner.infer(each[None]) for each in pixels]
    return {
        "logits": np.concatenate([each.logits for each in outputs]),
        "probabilities": np.concatenate([each.probabilities for each in outputs]),
    }


def image_input(pixels: np.ndarray, *, binary: bool = True) -> Any:
    tensor = tritonhttp.InferInput(PIXELS, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return tensor


def file_input(contents: list[bytes]) -> Any:
    tensor = tritonhttp.InferInput(FILES, [len(contents), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(contents, object)[:, None])
    return tensor


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_pixels_are_answered_as_the_file_answers(
    client: Any, pixels: np.ndarray, expected: dict[str, np.ndarray], binary_in: bool, binary_out: bool
) -> None:
    outputs = [tritonhttp.InferRequestedOutput(name, binary_data=binary_out) for name in expected]
    result = client.infer("tiny", [image_input(pixels, binary=binary_in)], outputs=outputs, request_id="seven")
    for name, values in expected.items():
        np.testing.assert_allclose(result.as_numpy(name), values, atol=1e-6)
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "1", "seven")


def test_without_a_wish_every_output_is_answered(client: Any, pixels: np.ndarray, expected: Any) -> None:
    result = client.infer("tiny", [image_input(pixels[:1])], model_version="1")
    assert [output["name"] for output in result.get_response()["outputs"]] == list(expected)
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected["probabilities"][:1], atol=1e-6)


def test_files_are_answered_as_their_pixels(server: Running, client: Any, expected: dict[str, np.ndarray]) -> None:
    result = client.infer("tiny_files", [file_input(server.photos)])
    for name, values in expected.items():
        np.testing.assert_allclose(result.as_numpy(name), values, atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_classes_are_those_of_the_largest_values(
    client: Any, pixels: np.ndarray, expected: dict[str, np.ndarray], binary: bool
) -> None:
    wanted = tritonhttp.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
    result = client.infer("tiny", [image_input(pixels)], outputs=[wanted])
    rows = result.as_numpy("probabilities")
    assert rows.shape == (len(pixels), 2)
    for row, values in zip(rows, expected["probabilities"]):
        best = np.argsort(-values, kind="stable")[:2]
        parts = [(text.decode() if isinstance(text, bytes) else text).split(":") for text in row]
        assert [int(index) for _, index, _ in parts] == best.tolist()
        assert [name for _, _, name in parts] == [CLASSES[index] for index in best]
        np.testing.assert_allclose([float(value) for value, _, _ in parts], values[best], atol=1e-6)


def test_more_classes_than_there_are_are_all_of_them(client: Any, pixels: np.ndarray) -> None:
    wanted = tritonhttp.InferRequestedOutput("logits", class_count=1000)
    assert client.infer("tiny", [image_input(pixels)], outputs=[wanted]).as_numpy("logits").shape[1] == len(CLASSES)


def test_health_and_metadata_are_those_of_the_model(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny_files", "1")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("tiny")
    assert metadata["inputs"] == [{"name": PIXELS, "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    assert {output["name"]: output["shape"] for output in metadata["outputs"]} == {
        "logits": [-1, len(CLASSES)],
        "probabilities": [-1, len(CLASSES)],
    }
    assert metadata["versions"] == ["1"]
    assert client.get_model_metadata("tiny_files")["inputs"] == [{"name": FILES, "datatype": "BYTES", "shape": [-1, 1]}]
    config = client.get_model_config("tiny", "1")
    assert (config["name"], config["platform"], config["input"][0]["dims"]) == (
        "tiny",
        "onnxruntime_onnx",
        [SIZE, SIZE, 3],
    )
    assert client.get_model_config("tiny_files")["input"][0]["data_type"] == "TYPE_STRING"


def test_as_many_images_as_the_config_says_are_answered_and_one_more_is_too_large(client: Any) -> None:
    most = client.get_model_config("tiny")["max_batch_size"]
    images = np.zeros((most, SIZE, SIZE, 3), np.uint8)
    assert client.infer("tiny", [image_input(images)]).as_numpy("logits").shape == (most, len(CLASSES))
    with pytest.raises(InferenceServerException, match=f"at most {most} images at once") as error:
        client.infer("tiny", [image_input(np.zeros((most + 1, SIZE, SIZE, 3), np.uint8))])
    assert error.value.status() == "413"


@pytest.mark.parametrize(
    ("model", "version", "code"), [("other", "", "404"), ("tiny", "2", "404"), ("tiny", "%31%00", "404")]
)
def test_another_model_or_version_is_not_found(
    client: Any, pixels: np.ndarray, model: str, version: str, code: str
) -> None:
    with pytest.raises(InferenceServerException, match=r"Expected (the model|version)") as error:
        client.infer(model, [image_input(pixels)], model_version=version)
    assert error.value.status() == code
    with pytest.raises(InferenceServerException):
        client.get_model_metadata(model, version)


def test_what_is_no_input_of_the_model_is_refused(server: Running, client: Any, pixels: np.ndarray) -> None:
    for inputs, message in (
        ([image_input(pixels[:, :8])], "UINT8 of shape"),
        ([file_input(server.photos)], "Expected one input, images. Received: files"),
        ([], "Expected one input, images. Received: none"),
    ):
        with pytest.raises(InferenceServerException, match=message) as error:
            client.infer("tiny", inputs)
        assert error.value.status() == "400"
    with pytest.raises(InferenceServerException, match="Expected outputs of logits, probabilities"):
        client.infer("tiny", [image_input(pixels)], outputs=[tritonhttp.InferRequestedOutput("secrets")])


def test_one_file_that_is_no_image_is_named_and_the_next_request_is_answered(server: Running, client: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"in files\[1\]") as error:
        client.infer("tiny_files", [file_input([server.photos[0], b"no image", server.photos[1]])])
    assert error.value.status() == "415"
    assert client.infer("tiny_files", [file_input(server.photos[:1])]).as_numpy("logits").shape == (1, len(CLASSES))


def test_what_asks_for_much_json_is_answered_as_what_asks_for_bytes(server: Running) -> None:
    """KServe's clients send JSON alone; a long one is read and written apart from the event loop."""
    images = np.random.default_rng(0).integers(0, 256, (100, SIZE, SIZE, 3), np.uint8)
    tensor = {"name": PIXELS, "datatype": "UINT8", "shape": list(images.shape), "data": images.tolist()}
    answer = server.ask("/v2/models/tiny/infer", json.dumps({"inputs": [tensor]}).encode())
    with server.deployment.open() as classifier:
        expected = classifier.runner.infer(images).logits
    outputs = {output["name"]: output for output in answer.json["outputs"]}
    assert outputs["logits"]["shape"] == [100, len(CLASSES)]
    np.testing.assert_allclose(np.reshape(outputs["logits"]["data"], (100, -1)), expected, atol=1e-6)


def test_a_compressed_request_is_refused_and_an_answer_is_not_compressed(client: Any, pixels: np.ndarray) -> None:
    with pytest.raises(InferenceServerException, match="not compressed"):
        client.infer("tiny", [image_input(pixels)], request_compression_algorithm="gzip")
    accepted = client.infer("tiny", [image_input(pixels)], response_compression_algorithm="gzip")
    assert len(accepted.as_numpy("logits")) == len(pixels), "an answer need not be compressed"
