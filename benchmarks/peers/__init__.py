"""What others make of the same model: other quantizers, and PyTorch. Each runs in an environment of its own.

The quantizers import nothing around this folder; PyTorch's runner takes the protocol and the timing of the project, so
that it can be timed beside our engines.
"""
