"""Selects the file that answers, and classifies images with it."""
