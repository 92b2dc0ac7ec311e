"""The page at ``/``: drop a picture, see what the model answers, in which precision, and how long it took.

It is made once, of the deployment, with the files of ``templates/`` and the report's style sheet. A browser is told to
load nothing else: no script, style or picture of another site, and none written into the page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response

from pipeline.artifacts.files import sha256_bytes
from pipeline.artifacts.parity_report import PASS
from pipeline.inference.deployment import Deployment
from pipeline.reporting.html import TEMPLATES as REPORT_TEMPLATES
from pipeline.reporting.html import environment

TEMPLATES: Final = Path(__file__).parent / "templates"
REPORT_STYLE: Final = REPORT_TEMPLATES.parent / "report.css"
MOST_CLASSES: Final = 5  # that the page asks for
MOST_ANSWERS: Final = 24  # that the page keeps, each with its picture
BACKENDS: Final = {
    "tensorrt": "TensorRT",
    "onnxruntime-cuda": "ONNX Runtime (CUDA)",
    "onnxruntime": "ONNX Runtime",
}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked again each time: the next server on this port may answer with another model
}


def add_page(app: FastAPI, deployment: Deployment) -> None:
    """Add the page and its files to a server that answers ``POST /classify``.

    Args:
        app: of the server.
        deployment: what answers.
    """
    html = "text/html"
    files = {
        "/": (html, page(deployment).encode()),
        "/report.css": ("text/css", REPORT_STYLE.read_bytes()),
        "/page.css": ("text/css", (TEMPLATES / "page.css").read_bytes()),
        "/page.js": ("text/javascript", (TEMPLATES / "page.js").read_bytes()),
    }
    for path, (kind, content) in files.items():
        app.add_route(path, _answer(content, kind), include_in_schema=False)  # GET, and with it HEAD


def page(deployment: Deployment) -> str:
    """Return the page's HTML.

    Args:
        deployment: what answers.
    """
    choice, classes = deployment.choice, deployment.card.classes
    return (
        environment(TEMPLATES)
        .get_template("page.html")
        .render(
            name=deployment.name,
            classes=classes,
            most_classes=min(MOST_CLASSES, len(classes)),
            most_answers=MOST_ANSWERS,
            choice=choice,
            passed=choice.verdict == PASS,
            backends=BACKENDS,
        )
    )


def _answer(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers with a file, or with 304 where the browser has these bytes."""
    tag = f'"{sha256_bytes(content)[:32]}"'
    headers = {**HEADERS, "ETag": tag}

    async def answer(request: Request) -> Response:
        known = request.headers.get("if-none-match", "").split(",")
        if tag in (each.strip().removeprefix("W/") for each in known):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return answer
