"""Distances between logits, and confidence intervals of shares."""
