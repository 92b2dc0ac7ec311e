"""Keras models: backbones, their weights and preprocessing, and the form that the export takes."""
