"""A run in a process of its own, to be killed: ``python -m tests.pipeline.inference.output.killed OUTPUT``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.pipeline.inference.output.made_runs import work

TOTAL, SHARD_ROWS, BATCH = 6_000, 512, 8


def run(output: Path) -> int:
    """Run to the end; return how many rows were there at first."""
    return work(output, TOTAL, SHARD_ROWS, BATCH, embeddings=True)


if __name__ == "__main__":
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    run(Path(sys.argv[1]))
