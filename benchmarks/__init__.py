"""Measures what the pipeline built. Imports ``pipeline.runners``; nothing imports it."""
