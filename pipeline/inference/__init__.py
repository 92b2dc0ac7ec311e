"""Batch inference: any number of images in, one row for each out."""
