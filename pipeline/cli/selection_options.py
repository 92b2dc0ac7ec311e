"""The options that choose the file that answers, which several verbs have."""

import argparse
from typing import Any

from export.tensorrt.sidecar import PRECISIONS
from pipeline.serving.candidates import BACKENDS

AUTO = "auto, TensorRT on a GPU and ONNX Runtime elsewhere"


def add_selection_options(group: Any, auto: str = AUTO) -> None:
    """Add ``--backend`` and ``--precision``.

    Args:
        group: of a parser, or a parser.
        auto: what the default of ``--backend`` takes.
    """
    for option, names, text in (
        ("--backend", BACKENDS, f"what runs the file; default: {auto}"),
        ("--precision", PRECISIONS, "default: auto, the fastest that passed"),
    ):
        group.add_argument(option, choices=["auto", *names], default="auto", type=str.lower, help=text)


def add_unverified_option(group: argparse._ArgumentGroup) -> None:
    """Add ``--allow-unverified``."""
    group.add_argument("--allow-unverified", action="store_true", help="serve a file that did not pass verification")
