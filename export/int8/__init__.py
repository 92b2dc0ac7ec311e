"""INT8 with explicit Q/DQ pairs, and the search for the best INT8 and FP16 graph of a model on held-out images."""
