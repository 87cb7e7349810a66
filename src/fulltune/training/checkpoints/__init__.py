"""Checkpoints: written whole, verified when read, restored exactly."""
