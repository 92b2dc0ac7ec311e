"""Measure the models and engines that the pipeline built. It imports ``pipeline``; nothing imports it."""
