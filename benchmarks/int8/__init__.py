"""What each step of INT8 quantization does to networks of several families, on images that chose nothing."""
