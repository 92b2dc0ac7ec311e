"""``infer`` with named images: batch inference, and what it says at its end."""

import argparse
import logging

from export.words import count
from pipeline.artifacts.paths import CARD
from pipeline.cli import options as cli
from pipeline.cli.infer_options import make_request
from pipeline.serving.select_model import Selection
from pipeline.workflow.context import Context
from pipeline.workflow.deployment import select, warn_of_recipe_changes

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
    from pipeline.inference.infer import Inference, infer  # with what it decodes with

    request = make_request(args, context.recipe.infer)
    card = context.card()
    warn_of_recipe_changes(context)

    def select_for(batch_size: int) -> Selection:
        return select(context, args.backend, args.precision, args.allow_unverified, batch_size)

    with context.invocation.completing_errors():
        result: Inference = infer(request, context.root / CARD, card, select_for, quiet=args.quiet)
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
