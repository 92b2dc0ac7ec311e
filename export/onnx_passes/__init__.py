"""Passes over ONNX graphs: plain functions from model to model."""
