"""The architecture matrix: every model type of transformers against plain transformers."""
