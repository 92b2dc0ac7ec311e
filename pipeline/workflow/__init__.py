"""Stages: what they are, when they run, and which inputs they get."""
