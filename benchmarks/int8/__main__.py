"""``python -m benchmarks.int8``."""

import sys

from benchmarks.int8.command import main

if __name__ == "__main__":
    sys.exit(main())
