"""Batch inference on engines that exist: Ray Data and Spark."""
