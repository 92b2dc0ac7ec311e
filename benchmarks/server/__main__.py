"""The command line: ``python -m benchmarks.server``."""

import sys

from pipeline.terminal.starting import start

if __name__ == "__main__":
    sys.exit(start("benchmarks.server.command"))
