"""The server's application: its routes, and its errors as JSON."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pipeline.server.classify_route import classify
from pipeline.server.errors import BUG, RequestError
from pipeline.server.front import Front
from pipeline.server.inference_protocol import add_protocol
from pipeline.server.metrics import CONTENT_TYPE
from pipeline.server.page import add_page
from pipeline.server.service import Service


def make_app(service: Service, hosts: tuple[str, ...] = ()) -> ASGIApp:
    """Return the ASGI application that answers with a service.

    Args:
        service: it is opened and closed by whoever runs the application.
        hosts: names by which it may be asked, see `Front`. Defaults to any.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.service = service
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    app.add_route("/classify", classify, ["POST"], include_in_schema=False)
    app.add_route("/metrics", _metrics, ["GET"], include_in_schema=False)
    add_protocol(app)
    add_page(app, service.deployment)
    # Of a model and of a version of it: the same label.
    labels = {route.endpoint: route.path for route in reversed(app.routes) if isinstance(route, Route)}
    return Front(app, service, labels, hosts)


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body(), error.code, error.headers())


async def _bug(request: Request, error: Exception) -> Response:
    return JSONResponse(BUG, 500)  # and `Front` logs it


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    methods = (error.headers or {}).get("Allow", "another method")
    wrong = {404: "a path of this server (/, /classify, /metrics, /v2)", 405: f"{methods} for this path"}
    expected = wrong.get(error.status_code, "a request that this server takes")
    text = f"Expected {expected}. Received: {request.method[:20]} {request.url.path[:80]}."
    status = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "bad_request")
    return JSONResponse({"error": text, "status": status}, error.status_code, error.headers)
