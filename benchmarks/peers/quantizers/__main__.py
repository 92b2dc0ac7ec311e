"""Run other quantizers as peers: ``python -m benchmarks.peers.quantizers``."""

import sys

from benchmarks.peers.quantizers.command import main

if __name__ == "__main__":
    sys.exit(main())
