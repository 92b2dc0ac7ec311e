"""From a Keras classifier to an ONNX model, checked against Keras."""
