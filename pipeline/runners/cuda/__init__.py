"""CUDA as the TensorRT runner needs it, by cuda-bindings or PyCUDA."""
