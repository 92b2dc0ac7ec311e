"""Two-phase transfer learning."""
