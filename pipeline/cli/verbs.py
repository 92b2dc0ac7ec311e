"""The verbs of ``python -m pipeline`` and their options."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.cli import options
from pipeline.cli.infer_options import EXAMPLES as INFER_EXAMPLES
from pipeline.cli.infer_options import add_infer_options
from pipeline.cli.serve_options import EXAMPLES as SERVE_EXAMPLES
from pipeline.cli.serve_options import add_serve_options
from pipeline.cli.triton_options import EXAMPLES as TRITON_EXAMPLES
from pipeline.cli.triton_options import add_triton_options
from pipeline.cli.verify_options import EXAMPLES as VERIFY_EXAMPLES
from pipeline.cli.verify_options import add_verify_options
from pipeline.terminal.command_line import ARTIFACTS, Parser

EXAMPLES = """examples:
  python -m pipeline run                                    the default recipe, all stages
  python -m pipeline run -c digits --explain                what would run, and why
  python -m pipeline train --set train.head.epochs=5 --force
  python -m pipeline infer photos/ -o predictions.csv       classify a folder
  python -m pipeline serve                                  a page and an API on http://127.0.0.1:8000/
  python -m pipeline benchmark -c digits                    latency and throughput
  python -m pipeline bundle -o digits.tar                   take the artifacts to a GPU machine
  python -m pipeline inspect model.h5                       describe any model file
  python -m pipeline engine check artifacts/digits/build/rtx/fp16.plan
  python -m pipeline doctor                                 what this machine can do
"""

HELP = {
    "train": "train the model of the recipe, or import a finished one",
    "export": "Keras to ONNX: uint8 pixels in, preprocessing inside, logits and probabilities out",
    "quantize": "the FP16 graph, and the INT8 graph with scales from the calibration images",
    "build": "TensorRT engines",
    "verify": "compare every file with Keras on the test images, and give the verdict",
    "infer": "classify images; with none named, a sample of the test images",
    "report": "one HTML page with everything",
}
LAYERS_HELP = "then compare every Keras layer with its tensor in each file"
REDUCE_HELP = "--layers, and the smallest part of what fails as files for a bug report (sets verify.reduce)"
TRITON_HELP = "a Triton model repository of the file that passed verification, to serve it in production"
BENCHMARK_HELP = "latency and throughput of Keras, ONNX Runtime and the engines, as `python -m benchmarks`"


def build_parser() -> Parser:
    """Return the parser of every verb."""
    parser = Parser(
        prog="python -m pipeline",
        description="From a trained Keras ResNet to verified, measured TensorRT engines.",
        epilog=f"{EXAMPLES}\n{options.EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="command", required=True, metavar="VERB")
    recipe, stage, output = options.recipe_options(), options.stage_options(), options.output_options()

    def add(name: str, text: str, parents: Sequence[Parser], example: str) -> Parser:
        return _add(verbs, name, text, parents, f"example:\n  python -m pipeline {name} {example}")

    add("run", "all stages and the benchmark; what is up to date is skipped", [recipe, stage], "-c digits")
    for name, text in HELP.items():
        if name not in ("verify", "infer"):
            add(name, text, [recipe, stage], "-c digits")
    verify = add("verify", HELP["verify"], [recipe, stage], VERIFY_EXAMPLES)
    add_verify_options(verify)
    verify.add_argument("--layers", action="store_true", help=LAYERS_HELP)
    verify.add_argument("--reduce", action="store_true", help=REDUCE_HELP)
    add("benchmark", BENCHMARK_HELP, [recipe, stage], "-c digits --set benchmark.seconds=5 --force")
    infer = add("infer", HELP["infer"], [recipe, stage], INFER_EXAMPLES)
    add_infer_options(infer)
    triton = add("triton-repo", TRITON_HELP, [recipe], TRITON_EXAMPLES)
    add_triton_options(triton)
    serve = add(
        "serve",
        "a server on this machine: a page, POST /classify, the Open Inference Protocol",
        [recipe],
        SERVE_EXAMPLES,
    )
    add_serve_options(serve)
    add("config", "print the recipe with overrides and defaults filled in", [recipe], "-c digits")
    add("doctor", "what is installed here, and what each stage can do on this machine", [output], "--json")
    inspect = add(
        "inspect",
        "what a model file is, and a recipe to start from; nothing of it runs",
        [output],
        "m.keras --recipe configs/m.yaml",
    )
    inspect.add_argument("model", type=Path, help=".keras or .h5 file, or SavedModel folder")
    inspect.add_argument("--recipe", type=Path, metavar="FILE", help="write the recipe there; it must be a new file")
    _add_engine(verbs, output)
    bundle = add(
        "bundle", "put a recipe's artifacts into one archive, to take to another machine", [recipe], "-c digits"
    )
    bundle.add_argument("-o", "--output", type=Path, help="default: <recipe>.bundle.tar")
    unpack = add("unpack", "unpack an archive of `bundle`, every hash checked", [output], "digits.bundle.tar")
    unpack.add_argument("archive", type=Path, help="the .tar file that `bundle` wrote")
    unpack.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="folder of the results; default: %(default)s")
    unpack.add_argument("--force", action="store_true", help="replace existing artifacts of the same recipe")
    return parser


def _add_engine(verbs: Any, output: Parser) -> None:
    """Add the verb ``engine`` with its own verbs ``inspect`` and ``check``."""
    examples = "examples:" + "".join(
        f"\n  python -m pipeline engine {action} artifacts/digits/build/rtx/int8.plan{option}"
        for action, option in (("inspect", ""), ("inspect", " --json"), ("check", ""))
    )
    engine = _add(verbs, "engine", "what a TensorRT engine is, and whether it fits this machine", (), examples)
    actions = engine.add_subparsers(dest="action", required=True, metavar="inspect|check")
    for name, text in {
        "inspect": "what an engine is: precision asked for and found, GPUs, batch sizes, sources; nothing is loaded",
        "check": "whether an engine fits this machine; if not, why, and the command that rebuilds it",
    }.items():
        action = _add(actions, name, text, [output], examples)
        action.add_argument("plan", type=Path, help="a .plan file, its sidecar beside it")


def _add(to: Any, name: str, text: str, parents: Sequence[Parser], examples: str) -> Parser:
    parser: Parser = to.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        parents=list(parents),
        epilog=f"{examples}\n\n{options.EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser
