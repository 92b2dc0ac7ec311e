"""Run a verb of ``python -m pipeline``, and note when ONNX Runtime gave its first answer, which no one outside sees."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from pipeline.cli.commands import main as pipeline


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``NOTE VERB ...``, write ``time.monotonic()`` at the first answer to NOTE, and return the exit status."""
    note, *words = sys.argv[1:] if argv is None else argv
    file, run = Path(note), onnxruntime.InferenceSession.run

    def noting(session: Any, *args: Any, **options: Any) -> Any:
        answer = run(session, *args, **options)
        if not file.exists():
            file.write_text(repr(time.monotonic()), encoding="ascii")
        return answer

    onnxruntime.InferenceSession.run = noting
    try:
        return pipeline(words)
    finally:
        onnxruntime.InferenceSession.run = run


if __name__ == "__main__":
    sys.exit(main())
