"""Time PyTorch as a peer: ``python -m benchmarks.peers.pytorch``."""
