"""The command line: ``python -m benchmarks.faults``."""

import sys

from pipeline.terminal.starting import start

if __name__ == "__main__":
    sys.exit(start("benchmarks.faults.command"))
