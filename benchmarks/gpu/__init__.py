"""Run a visit to a GPU: the parts of ``python -m benchmarks.gpu_evidence``. Python 3.10 and NumPy alone."""
