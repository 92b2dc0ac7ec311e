"""``infer`` with named images: batch inference, and what it says at its end."""

from __future__ import annotations

import argparse
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from export.words import count
from pipeline.artifacts.paths import CARD
from pipeline.cli import options as cli
from pipeline.cli.infer_options import make_request
from pipeline.cli.infer_ray import RAY
from pipeline.inference.request import Request
from pipeline.serving.select_model import Selection
from pipeline.workflow.context import Context
from pipeline.workflow.deployment import deploy, select, warn_of_recipe_changes

if TYPE_CHECKING:
    from pipeline.inference.deployment import Deployment
    from pipeline.inference.infer import Inference

log = logging.getLogger(__name__)

_FEW = 10  # images whose speed says nothing


def infer_images(args: argparse.Namespace, context: Context) -> dict[str, object]:
    """Classify the images that the command line names.

    Args:
        args: parsed options of ``infer``.
        context: of the recipe.

    Returns:
        dict[str, object]: the JSON line: how many images, by status, the file that answered, and the speed.
    """
    request = make_request(args, context.recipe.infer)
    with context.invocation.completing_errors():
        result = (_infer_on_ray if args.engine == RAY else _infer_here)(args, context, request)
    if result.images > _FEW and result.continued < result.images:
        log.info("%s images/s, %s", f"{result.pace['images_per_second']:,.0f}", result.sentence)
    output = "standard output" if request.output is None else str(request.output)
    failures = {status: number for status, number in result.statuses.items() if status != "ok"}
    kinds = f" ({', '.join(f'{number:,} {status}' for status, number in failures.items())})" if failures else ""
    by = f", classified by {result.choice.name} ({result.choice.backend}, verdict: {result.choice.verdict})"
    log.info(
        "%s: %s, %s of them failed%s%s",
        *(output, count(result.images, "image"), f"{result.failed:,}", kinds),
        by if result.failed < result.images else "",
    )
    if (links := result.links) is not None:
        unsure = f", {links.unsure:,} of them unsure" if links.unsure else ""
        log.info("%s: %s%s", args.sort_into, count(links.links, "link"), unsure)
        if links.too_long:
            log.warning("%s without a link: the path is too long for one", count(links.too_long, "image"))
    return {
        "images": result.images,
        "failed": result.failed,
        "statuses": dict(result.statuses),
        "continued": result.continued,
        "left_out": dict(result.left_out),
        "output": output,
        "model": result.choice.name,
        "backend": result.choice.backend,
        "verdict": result.choice.verdict,
        "seconds": round(result.seconds, 3),
        **result.pace,
        "exit": cli.SOME_FAILED if result.failed else cli.DONE,
    }


def _infer_here(args: argparse.Namespace, context: Context, request: Request) -> Inference:
    from pipeline.inference.infer import infer  # with what it decodes with

    card = context.card()
    warn_of_recipe_changes(context)

    def select_for(batch_size: int) -> Selection:
        return select(context, args.backend, args.precision, args.allow_unverified, batch_size)

    return infer(request, context.root / CARD, card, select_for, quiet=args.quiet)


def _infer_on_ray(args: argparse.Namespace, context: Context, request: Request) -> Inference:
    from pipeline.distributed.ray_engine import RayOptions, infer_on_ray

    context.card()  # what it refuses is said before a cluster starts
    how = partial(
        _deploy,
        context=context,
        backend=args.backend,
        precision=args.precision,
        allow_unverified=args.allow_unverified,
        top_k=request.top_k,
        threshold=request.threshold,
        keep_damaged=request.keep_damaged,
    )
    options = RayOptions(args.ray_address, args.workers)
    return infer_on_ray(request, context.root / CARD, how, options, quiet=args.quiet)


def _deploy(batch_size: int, context: Context, **options: Any) -> Deployment:
    return deploy(context, batch_size=batch_size, **options)
