"""Micro-batches: their rows, their order, padding and packing."""
