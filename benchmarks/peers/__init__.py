"""What other quantizers make of the same model and images. Runs in its own environment: imports nothing around it."""
