"""Regularization: keep a model close to its base, or less dependent on single rows."""
