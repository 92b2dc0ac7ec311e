"""Compares every exported file with Keras and gives the verdict."""
