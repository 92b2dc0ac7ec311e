"""Labelled images: where they come from, how they are decoded, which split each belongs to."""
