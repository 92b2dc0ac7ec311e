"""Compare every exported file with Keras and give the verdict."""
