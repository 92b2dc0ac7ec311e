"""What ``python -m benchmarks.gpu_evidence`` does on a GPU machine. Python 3.10 syntax, NumPy alone."""
