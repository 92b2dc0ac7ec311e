"""FP16 as a typed ONNX graph."""
