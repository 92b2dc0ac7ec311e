"""Build, inspect and check TensorRT engines. Python 3.10 and NumPy alone."""
