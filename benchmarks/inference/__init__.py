"""Batch inference from files to answers, in turns against what others would write and against its own parts."""
