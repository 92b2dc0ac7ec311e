"""The work of the quantize stage."""
