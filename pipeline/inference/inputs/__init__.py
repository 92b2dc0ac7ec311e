"""What is classified: paths, lists, tar and Parquet files become a plan of items on the disk."""
