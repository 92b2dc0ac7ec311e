"""Runners: one protocol, a file per backend. Import the module you need; each pulls in only its own library."""
