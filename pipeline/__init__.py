"""From a trained Keras ResNet to verified, measured TensorRT engines: the orchestration of the stages."""

__version__ = "0.1.0"
