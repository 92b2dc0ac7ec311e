"""Where the rows go: a run's own folder, its shards, and the file that is joined from them."""
