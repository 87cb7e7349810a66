"""Checkpoints: written atomically, verified when they are read, restored exactly."""
