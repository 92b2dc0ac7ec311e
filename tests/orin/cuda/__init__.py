"""Stands for cuda-bindings."""
