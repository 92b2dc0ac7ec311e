"""Keras model files of any age, read with suspicion and loaded as Keras 3 models."""
