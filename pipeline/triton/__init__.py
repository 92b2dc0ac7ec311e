"""A Triton model repository from verified files."""
