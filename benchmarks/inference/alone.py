"""The parts of batch inference alone: computing pixels that are in memory, or decoding files without computing.

Neither can be faster than the part takes; what the whole adds to the slower one is its own.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.artifacts.paths import Artifacts
from pipeline.cli import options
from pipeline.runners.base import split_batches
from pipeline.runners.cpus import usable_cpus
from pipeline.serving.select_model import select_model
from pipeline.terminal.command_line import Parser
from pipeline.workflow.context import Context

BACKEND, PRECISION = "onnxruntime", "fp32"  # the file that `infer` is told to take too
PARTS = ("compute", "decode")


def compute_alone(context: Context, paths: Sequence[Path]) -> float:
    """Return the seconds of the FP32 file on the CPU for these images, decoded before, in the recipe's batches."""
    section, card = context.recipe.infer, context.card()
    batch_size = min(section.batch_size, len(paths))
    choice = select_model(Artifacts(context.root), context.settings, BACKEND, PRECISION, batch_size=batch_size)
    with ThreadPoolExecutor(usable_cpus()) as pool:
        pixels = np.stack(list(pool.map(card.decode.pixels, paths)))
    top_k = min(section.top_k, len(card.classes))
    with choice.open() as runner:
        runner.top(pixels[: section.batch_size], top_k)  # the first call plans the memory
        start = time.perf_counter()
        for batch in split_batches(pixels, section.batch_size):
            runner.top(batch, top_k)
        return time.perf_counter() - start


def decode_alone(context: Context, paths: Sequence[Path]) -> float:
    """Return the seconds that decoding and resizing these images takes, with a thread for each CPU."""
    spec = context.card().decode
    spec.pixels(paths[0])  # imports of Pillow's plugins
    with ThreadPoolExecutor(usable_cpus()) as pool:
        start = time.perf_counter()
        for _ in pool.map(spec.pixels, paths):
            pass
        return time.perf_counter() - start


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="python -m benchmarks.inference.alone", description=__doc__, parents=[options.recipe_options()]
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path, help="folder of images")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one part and return the exit status; ``--json`` prints its seconds."""
    return options.run_command(build_parser(), argv, _alone)


def _alone(args: argparse.Namespace) -> dict[str, object]:
    paths = sorted(args.folder.iterdir())
    run = compute_alone if args.part == "compute" else decode_alone
    return {"images": len(paths), "seconds": run(options.make_context(args), paths)}


if __name__ == "__main__":
    sys.exit(main())
