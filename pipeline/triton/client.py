"""Classifies image files on a server: Triton with the repository beside this file, or `python -m pipeline serve`.

    python client.py photos/*.jpg > answers.csv

It needs ``pip install 'tritonclient[http]'`` and nothing else. A line of CSV a class: path, class, probability. A file
without an answer is named on standard error, and the exit status is 3.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SOME_FAILED, NO_SERVER = 3, 2
INPUT, OUTPUT = "files", "probabilities"


def main(argv: Sequence[str] | None = None) -> int:
    """Classify the files of the command line.

    Args:
        argv: the words after the program's name. Defaults to None: those of this process.

    Returns:
        int: the exit status.
    """
    parser = argparse.ArgumentParser(description="Classify image files on a server; CSV on standard output.")
    parser.add_argument("paths", nargs="+", metavar="FILE", help="image files")
    parser.add_argument("--url", default="localhost:8000", help="host and port; default: %(default)s")
    parser.add_argument("--model", default=_model(), required=_model() is None, help="default: %(default)s")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="classes of each image; default: %(default)s")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for a request; default: %(default)s")
    args = parser.parse_args(argv)
    if args.top_k < 1:
        parser.error(f"expected a number of at least 1 after --top-k, not {args.top_k}")
    args.url = args.url.removeprefix("http://").rstrip("/")  # as `serve` prints it
    if "://" in args.url:
        parser.error(f"expected host and port after --url, as localhost:8000, not {args.url}")
    try:
        import tritonclient.http as triton
    except ImportError as error:
        parser.error(f"{error}; pip install 'tritonclient[http]'")
    client = triton.InferenceServerClient(args.url, connection_timeout=args.timeout, network_timeout=args.timeout)
    try:
        if not client.is_model_ready(args.model):
            parser.error(f"{args.model} is not ready on {args.url}")
    except OSError as error:
        parser.exit(NO_SERVER, f"no server on {args.url}: {error}\n")
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["path", "class", "probability"])
    failed = 0
    for path in args.paths:
        try:
            rows.writerows((path, name, probability) for probability, name in _classify(client, path, args))
        except (OSError, triton.InferenceServerException) as error:
            sys.stderr.write(f"{path}: {error}\n")
            failed += 1
    return SOME_FAILED if failed else 0


def _classify(client: Any, path: str, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield the probability and the name of the best classes of a file, best first."""
    import numpy as np
    import tritonclient.http as triton

    content = np.empty((1, 1), object)
    content[0, 0] = Path(path).read_bytes()
    given = triton.InferInput(INPUT, [1, 1], "BYTES")
    given.set_data_from_numpy(content)
    wanted = triton.InferRequestedOutput(OUTPUT, class_count=args.top_k)
    answer = client.infer(args.model, [given], outputs=[wanted]).as_numpy(OUTPUT)
    for best in answer.reshape(-1):
        probability, _, name = best.decode().split(":", 2)
        yield probability, name


def _model() -> str | None:
    """The model of the repository that this file lies in; None elsewhere."""
    record = Path(__file__).resolve().parent / "repository.json"
    return f"{json.loads(record.read_text(encoding='utf-8'))['recipe']}_files" if record.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
