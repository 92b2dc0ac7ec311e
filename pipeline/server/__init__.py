"""A small HTTP server: the Open Inference Protocol, one image, a page."""
