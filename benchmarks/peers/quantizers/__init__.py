"""Run other quantizers as peers: ``python -m benchmarks.peers.quantizers``."""
