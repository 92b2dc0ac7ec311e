"""Compare with other tools on the same model: other quantizers, and PyTorch. Each runs in an environment of its own.

PyTorch's runner has the protocol and the timing of the project, so that it can be timed together with our engines.
"""
