"""The recipe: its keys with their limits, how it is read, and what is refused."""
