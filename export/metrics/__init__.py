"""Distances between answers, and how sure they are."""
