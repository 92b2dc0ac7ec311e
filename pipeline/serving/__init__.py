"""Select the file that serves, and classify images with it."""
