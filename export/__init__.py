"""Transforms a model: Keras to ONNX, precision, calibration, quantization, TensorRT engines. Knows nothing of ``pipeline``."""
