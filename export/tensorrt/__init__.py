"""TensorRT engines: what a library can do, building, sidecars. Python 3.10 syntax, NumPy alone."""
