"""Verify and measure a model's engines on the GPU of this machine: start the visit, or report why Python cannot.

The visit itself is in `benchmarks.gpu.command`. The module uses the standard library and old syntax only, so that an
older Python can read it and report its version.
"""

import faulthandler
import json
import sys

OLDEST = (3, 10)
OURS = ("benchmarks", "export", "pipeline")


def main(argv: "list[str] | None" = None) -> int:
    """Import the command, run it, and return the exit status."""
    if sys.version_info < OLDEST:
        return _refused(
            "Expected Python {}.{} or later. Received: Python {}.{}, {}. Start it with a newer one.".format(
                *OLDEST, *sys.version_info[:2], sys.executable
            )
        )
    try:
        from benchmarks.gpu.command import main as visit
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OURS:
            return _refused(
                "Expected this project's folders {}, whole and in the current folder. Received: no {}. "
                "Copy them again.".format(", ".join(OURS), error.name)
            )
        python = sys.executable
        return _refused(
            f"Expected numpy, and beside it TensorRT and cuda-bindings. Received: no {error.name} in {python}. "
            f"Install them: {python} -m pip install numpy cuda-bindings, and the TensorRT that is wanted."
        )
    except KeyboardInterrupt:
        return _refused("Interrupted before the first step.", 130)
    return visit(argv)


def _refused(message: str, status: int = 2) -> int:
    sys.stderr.write(message + "\n")
    print(json.dumps({"output": None, "exit": status, "error": message}))
    return status


if __name__ == "__main__":
    faulthandler.enable()  # a library that crashes the process shows where it was called
    sys.exit(main())
