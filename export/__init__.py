"""Transforms a model: Keras to ONNX, precision, calibration, quantization, engines. Knows nothing of ``pipeline``."""
