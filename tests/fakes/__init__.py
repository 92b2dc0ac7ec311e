"""Stand-ins for what is not on this machine, built to the interface of the real thing."""
