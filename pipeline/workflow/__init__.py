"""What a stage is, when it runs, and what it is given."""
