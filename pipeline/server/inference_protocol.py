"""The routes of the Open Inference Protocol v2, as Triton and KServe have them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipeline import __version__
from pipeline.runners.base import Outputs, top_k_of
from pipeline.server.errors import RequestError
from pipeline.server.service import Service
from pipeline.server.tensors import (
    HEADER_LENGTH,
    InferRequest,
    Output,
    Tensor,
    Wanted,
    bad,
    bytes_of,
    read_request,
    uint8_of,
    write_response,
)
from pipeline.serving.protocol import ANSWERS, FILES, PIXELS, VERSION, files_model

SERVER: Final = "keras-resnet-to-tensorrt"
EXTENSIONS: Final = ("classification", "binary_tensor_data", "model_configuration")
_T = TypeVar("_T")
_PLATFORMS: Final = {"tensorrt": "tensorrt_plan"}
_LONG: Final = 64 << 10  # bytes, from which on reading or writing them would hold up other requests


def add_protocol(app: Starlette) -> None:
    """Add the routes to the server's application."""
    app.add_route("/v2", _server, ["GET"])
    app.add_route("/v2/health/live", _live, ["GET"])
    app.add_route("/v2/health/ready", _ready, ["GET"])
    for of_version in ("", "/versions/{version}"):
        model = "/v2/models/{model}" + of_version
        app.add_route(model, _metadata, ["GET"])
        app.add_route(f"{model}/ready", _model_ready, ["GET"])
        app.add_route(f"{model}/config", _config, ["GET"])
        app.add_route(f"{model}/infer", _infer, ["POST"])


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _server(request: Request) -> Response:
    return JSONResponse({"name": SERVER, "version": __version__, "extensions": list(EXTENSIONS)})


async def _live(request: Request) -> Response:
    return Response()


async def _ready(request: Request) -> Response:
    return Response(status_code=200 if _service(request).ready else 503)


async def _model_ready(request: Request) -> Response:
    _model(request)
    return await _ready(request)


def _model(request: Request) -> str:
    """Return the name of the model of the path."""
    name, version = request.path_params["model"], request.path_params.get("version", VERSION)
    known = (own := _service(request).deployment.name), files_model(own)
    if name not in known:
        raise RequestError(404, f"Expected the model {' or '.join(known)}. Received: another name.", "no_such_model")
    if version != VERSION:
        raise RequestError(404, f"Expected version {VERSION}. Received: another one.", "no_such_version")
    return str(name)


def _takes_files(request: Request, name: str) -> bool:
    return name != _service(request).deployment.name


async def _metadata(request: Request) -> Response:
    name = _model(request)
    deployment = _service(request).deployment
    files = _takes_files(request, name)
    pixels = {"name": PIXELS, "datatype": "UINT8", "shape": [-1, *deployment.card.size, 3]}
    return JSONResponse(
        {
            "name": name,
            "versions": [VERSION],
            "platform": _platform(request, files),
            "inputs": [{"name": FILES, "datatype": "BYTES", "shape": [-1, 1]} if files else pixels],
            "outputs": [
                {"name": answer, "datatype": "FP32", "shape": [-1, len(deployment.card.classes)]} for answer in ANSWERS
            ],
        }
    )


def _platform(request: Request, files: bool) -> str:
    return "ensemble" if files else _PLATFORMS.get(_service(request).deployment.choice.backend, "onnxruntime_onnx")


async def _config(request: Request) -> Response:
    name, service = _model(request), _service(request)
    files, card = _takes_files(request, name), service.deployment.card
    pixels = {"name": PIXELS, "data_type": "TYPE_UINT8", "dims": [*card.size, 3]}
    return JSONResponse(
        {
            "name": name,
            "platform": _platform(request, files),
            "max_batch_size": service.limits.queue,
            "input": [{"name": FILES, "data_type": "TYPE_STRING", "dims": [1]} if files else pixels],
            "output": [{"name": answer, "data_type": "TYPE_FP32", "dims": [len(card.classes)]} for answer in ANSWERS],
        }
    )


async def _infer(request: Request) -> Response:
    name, service = _model(request), _service(request)
    body = await request.body()
    asked = await _apart(len(body), read_request, body, request.headers.get(HEADER_LENGTH), service.limits.json)
    wanted = _wanted(asked)
    files = _takes_files(request, name)
    tensor = _input(asked, FILES if files else PIXELS)
    if files:
        answer = await _of_files(service, tensor)
    else:
        pixels = await _apart(len(body), uint8_of, tensor, (*service.deployment.card.size, 3))
        answer = await service.pixels(pixels)
    write = partial(_write, name, asked.id, wanted, answer, service.deployment.card.classes)
    content, json_length = await _apart(answer.logits.nbytes, write)
    if json_length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER_LENGTH: str(json_length)}, media_type="application/octet-stream")


async def _apart(size: int, function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function, in a thread where it takes long."""
    if size <= _LONG:
        return function(*arguments)
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def _write(
    model: str, identity: str | None, wanted: Sequence[Wanted], answer: Outputs, classes: tuple[str, ...]
) -> tuple[bytes, int | None]:
    return write_response(model, VERSION, identity, [_output(each, answer, classes) for each in wanted])


def _wanted(asked: InferRequest) -> Sequence[Wanted]:
    if unknown := [each.name for each in asked.outputs if each.name not in ANSWERS]:
        raise bad(f"Expected outputs of {', '.join(ANSWERS)}. Received: {unknown[0][:80]!r}.")
    return asked.outputs or [Wanted(name, asked.binary) for name in ANSWERS]


def _input(asked: InferRequest, name: str) -> Tensor:
    if [tensor.name for tensor in asked.inputs] != [name]:
        names = ", ".join(tensor.name[:80] for tensor in asked.inputs) or "none"
        raise bad(f"Expected one input, {name}. Received: {names}.")
    return asked.inputs[0]


async def _of_files(service: Service, tensor: Tensor) -> Outputs:
    contents = bytes_of(tensor, service.limits.queue)
    many = len(contents) > 1
    tasks = [
        asyncio.ensure_future(service.file(content, f"{FILES}[{index}]" if many else FILES))
        for index, content in enumerate(contents)
    ]
    try:
        seen = await asyncio.gather(*tasks)
    finally:  # one that is no image spoils the request, and the others are not computed any more
        for task in tasks:
            task.cancel()
    outputs = [each.computed.outputs for each in seen]
    return Outputs(*(np.concatenate(parts) for parts in zip(*outputs)))


def _output(wanted: Wanted, answer: Outputs, classes: tuple[str, ...]) -> Output:
    values: np.ndarray = getattr(answer, wanted.name)
    if not wanted.classification:
        return Output(wanted.name, values, wanted.binary)
    best, indices = top_k_of(values, wanted.classification)
    texts: list[list[Any]] = [
        [f"{value:f}:{index}:{classes[index]}" for value, index in zip(*row)]
        for row in zip(best.tolist(), indices.tolist())
    ]
    return Output(wanted.name, np.array(texts, object).reshape(best.shape), wanted.binary)
