"""Plants faults into finished artifacts, and looks whether a verdict names them."""
