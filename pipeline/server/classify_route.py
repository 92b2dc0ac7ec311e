"""``POST /classify``: the bytes of an image, or one file of a form, to its best classes."""

from __future__ import annotations

import math
import time

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipeline.runners.base import top_k_of
from pipeline.server.errors import RequestError
from pipeline.server.service import Seen, Service

_FORM_FIELDS = 8  # besides the file
_AS_FORM = "Send it as `curl -F image=@photo.jpg` does."


async def classify(request: Request) -> Response:
    """Answer with the best classes, what answered, and where the time went."""
    service: Service = request.app.state.service
    began = time.perf_counter()
    k = _top_k(request, service)
    content = await _content(request)
    if not content:
        raise RequestError(400, "Expected the bytes of an image as the request's body. Received: nothing.", "empty")
    return JSONResponse(_answer(await service.file(content), service, k, began))


def _top_k(request: Request, service: Service) -> int:
    if unknown := [name for name in request.query_params if name != "top_k"]:
        raise RequestError(400, f"Expected no parameter but top_k. Received: {unknown[0][:40]!r}.", "bad_parameter")
    text = request.query_params.get("top_k")
    if text is None:
        return service.deployment.settings.top_k
    if not (text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise RequestError(
            400, f"Expected a whole number from 1 on for top_k. Received: {text[:40]!r}.", "bad_parameter"
        )
    return int(text)


async def _content(request: Request) -> bytes:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await request.body()
    limit = request.app.state.service.limits.upload
    try:
        async with request.form(max_files=1, max_fields=_FORM_FIELDS, max_part_size=limit) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            if not files:  # of two, Starlette has said so
                raise RequestError(400, f"Expected one file in the form. Received: none. {_AS_FORM}", "bad_form")
            return await files[0].read()
    except HTTPException as error:
        detail = error.detail.rstrip(".")
        raise RequestError(400, f"Expected a form with one file. Received: {detail}. {_AS_FORM}", "bad_form") from None


def _answer(seen: Seen, service: Service, k: int, began: float) -> dict[str, object]:
    deployment = service.deployment
    probabilities, classes = top_k_of(seen.computed.outputs.probabilities, k)
    choice = deployment.choice
    return {
        "model": deployment.name,
        "classes": [
            {
                "class": deployment.card.classes[index],
                "probability": None if math.isnan(probability) else probability,  # JSON has no word for it
            }
            for index, probability in zip(classes[0].tolist(), probabilities[0].tolist())
            if not probability < deployment.settings.threshold
        ],
        "width": seen.decoded.width,
        "height": seen.decoded.height,
        **({"damage": seen.decoded.damage} if seen.decoded.damage else {}),
        "answered_by": {
            "file": choice.name,
            "backend": choice.backend,
            "precision": choice.precision,
            "verdict": choice.verdict,
        },
        "batch": seen.computed.batch,
        "milliseconds": {
            "decode": _milliseconds(seen.decode_seconds),
            "queue": _milliseconds(seen.computed.queued),
            "compute": _milliseconds(seen.computed.seconds),
            "total": _milliseconds(time.perf_counter() - began),
        },
    }


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)
