"""``serve``: the server of a recipe."""

from __future__ import annotations

import argparse
import logging

from export.errors import ProjectError
from export.words import count
from pipeline.artifacts.machine import version_of
from pipeline.cli import options as cli
from pipeline.cli.serve_options import check_serve_options
from pipeline.runners.cpus import usable_cores
from pipeline.terminal.command_line import module_command
from pipeline.workflow.context import Context
from pipeline.workflow.deployment import deploy

log = logging.getLogger(__name__)

_PACKAGES = ("fastapi", "uvicorn", "httptools", "python-multipart", "prometheus-client")


def serve_recipe(args: argparse.Namespace, context: Context) -> dict[str, object]:
    """Serve a recipe's model until a signal stops it.

    Args:
        args: parsed options of ``serve``.
        context: of the recipe.

    Returns:
        dict[str, object]: the JSON line: the URL, how many requests were answered, and the file that did.
    """
    check_serve_options(args)
    if missing := [name for name in _PACKAGES if version_of(name) is None]:
        raise ProjectError(
            f"Expected the packages of requirements-serve.txt. Received: no {', '.join(missing)}. "
            f"`make install-serve`, or `{module_command('pip')} install -r requirements-serve.txt`."
        )
    from pipeline.server.serve import is_loopback, serve
    from pipeline.server.service import Limits

    deployment = deploy(
        context,
        args.backend,
        args.precision,
        allow_unverified=args.allow_unverified,
        batch_size=args.max_batch,
        top_k=args.top_k,
        threads=usable_cores(),
    )
    limits = Limits(
        max_batch=deployment.settings.batch_size,
        max_delay=args.max_delay_ms / 1000,
        queue=args.queue,
        upload=args.max_upload_mib << 20,
    )
    if not is_loopback(args.host):
        log.warning(
            "--host %s: others can reach this server. It has no login and no TLS: put a proxy before it", args.host
        )
    choice = deployment.choice

    def ready(url: str) -> None:
        log.info("%s  %s answers (%s, verdict: %s)", url, choice.name, choice.backend, choice.verdict)

    served = serve(deployment, limits, args.host, args.port, ready)
    log.info("stopped after %s", count(served.requests, "request"))
    if served.unanswered:
        log.warning("%s in flight got no answer", count(served.unanswered, "request"))
    return {
        "url": served.url,
        "requests": served.requests,
        "model": choice.name,
        "backend": choice.backend,
        "verdict": choice.verdict,
        "exit": cli.SOME_FAILED if served.unanswered else cli.DONE,
    }
