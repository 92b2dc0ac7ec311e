"""Command lines, processes and progress: what a person sees of a command."""
