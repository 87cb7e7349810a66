"""Micro-batches: which rows, in which order, padded or packed."""
