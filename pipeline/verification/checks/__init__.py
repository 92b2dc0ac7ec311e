"""What is asked of images, answers and files, each on its own."""
