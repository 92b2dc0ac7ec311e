"""The command line: ``python -m pipeline VERB``."""

import sys

from pipeline.terminal.starting import start

if __name__ == "__main__":
    sys.exit(start("pipeline.cli.commands"))
