"""``triton-repo``: a Triton model repository of a recipe's verified file."""

import argparse
import logging
from pathlib import Path

from export.files import refuse_long_name
from export.words import count
from pipeline.artifacts.files import recipe_lock
from pipeline.artifacts.output import check_folder, require_space
from pipeline.artifacts.parity_report import read_parity
from pipeline.artifacts.paths import PARITY, Artifacts
from pipeline.cli.triton_options import check_number
from pipeline.runners.cpus import usable_cpus
from pipeline.triton.batching import find_batching
from pipeline.triton.choose import choose
from pipeline.triton.config import Serving
from pipeline.triton.model_file import read_model_file
from pipeline.triton.readme import server_needs
from pipeline.triton.repository import refuse_changed, write_repository
from pipeline.workflow.context import Context
from pipeline.workflow.deployment import warn_of_recipe_changes

log = logging.getLogger(__name__)


def make_repository(args: argparse.Namespace, context: Context) -> dict[str, object]:
    """Write the repository.

    Args:
        args: parsed options of ``triton-repo``.
        context: of the recipe.

    Returns:
        dict[str, object]: what the JSON line holds.

    Raises:
        ProjectError: nothing passed verification, or the folder cannot be written.
    """
    instances = check_number("--instances", args.instances)
    decoders = check_number("--decoders", min(8, usable_cpus()) if args.decoders is None else args.decoders)
    recipe = context.recipe
    # Where a link leads: a server reads by its name, and a folder in the link's place would leave the other as it was.
    output = (args.output or Path(f"{recipe.name}-triton")).resolve()
    check_folder(output.parent, "-o", output)
    refuse_long_name(output, "-o")
    refuse_changed(output)
    card = context.card()
    warn_of_recipe_changes(context)
    with recipe_lock(context.root):
        artifacts = Artifacts(context.root)
        with context.invocation.completing_errors():
            choice = choose(artifacts, context.settings, args.backend, args.precision)
            file = read_model_file(choice, card)
        require_space(output.parent, choice.path.stat().st_size, str(output), "-o")
        serving = Serving(
            name=recipe.name,
            backend=choice.backend,
            file=file,
            batching=find_batching(artifacts, choice, recipe.infer.batch_size),
            decode=card.decode,
            largest_file=recipe.infer.max_file_mib * 2**20,
            instances=instances,
            decoders=decoders,
        )
        record = write_repository(output, serving, choice, card, artifacts, read_parity(artifacts.path(PARITY)))
    log.info(
        "%s: %s classifies (%s, verdict: %s), %s",
        *(output, choice.name, choice.backend, record.verdict, count(len(record.files), "file")),
    )
    for sentence in server_needs(file.sidecar):
        log.info("%s", sentence)
    log.info("start: tritonserver --model-repository=%s", output)
    batching = serving.batching
    return {
        "recipe": recipe.name,
        "output": str(output),
        "model": choice.name,
        "backend": choice.backend,
        "precision": choice.precision,
        "verdict": record.verdict,
        "max_batch_size": batching.largest.value,
        "preferred_batch_size": batching.preferred.value,
        "max_queue_delay_microseconds": batching.delay.value,
        "tensorrt": record.tensorrt,
        "files": len(record.files),
    }
