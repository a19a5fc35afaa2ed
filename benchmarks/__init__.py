"""Measured claims: every figure in the README has a command here. Nothing here is installed or imported elsewhere."""
