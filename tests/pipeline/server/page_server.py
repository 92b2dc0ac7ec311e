"""A server of the page alone, on 127.0.0.1, whose answers to pictures are those that a test gives."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from pipeline.inference.deployment import Deployment
from pipeline.server.page import add_page

SECONDS = 30.0  # that the server may take to start or to stop


@dataclass(frozen=True)
class Reply:
    """An answer of ``POST /classify``."""

    content: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def answered(classes: Sequence[tuple[str, float]], **by: str) -> Reply:
    """An answer with these classes, by a file with these properties."""
    file = {"file": "export/model.onnx", "backend": "onnxruntime", "precision": "fp32", "verdict": "pass"}
    return Reply(
        {
            "model": "tiny",
            "classes": [{"class": name, "probability": probability} for name, probability in classes],
            "width": 640,
            "height": 427,
            "answered_by": file | by,
            "batch": 3,
            "milliseconds": {"decode": 1.24, "queue": 0.4, "compute": 3.1, "total": 1234.5},
        }
    )


def refused(error: str, status: int, **headers: str) -> Reply:
    """An answer that says why there is none."""
    return Reply({"error": error, "status": "refused"}, status, headers)


@contextmanager
def page_server(deployment: Deployment, answer: Callable[[bytes, int], Reply], port: int = 0) -> Iterator[str]:
    """Serve the page in a thread.

    Args:
        deployment: whose page it is.
        answer: gives the reply to a picture's bytes and the number of classes that are asked for.
        port: where it listens. Defaults to 0: a free one.

    Yields:
        str: the page's address.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_page(app, deployment)

    @app.post("/classify")
    async def classify(request: Request, top_k: int) -> Response:
        reply = await run_in_threadpool(answer, await request.body(), top_k)
        return JSONResponse(reply.content, reply.status, dict(reply.headers))

    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", port)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            end = time.monotonic() + SECONDS
            while not server.started:
                assert thread.is_alive(), "the server has ended"
                assert time.monotonic() < end, "the server did not start"
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(SECONDS)
