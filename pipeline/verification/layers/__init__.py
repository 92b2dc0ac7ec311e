"""Every Keras layer's output against its tensor in an exported file."""
