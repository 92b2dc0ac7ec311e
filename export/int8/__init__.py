"""The search for the best INT8 and FP16 graph of a model, judged on held-out images."""
