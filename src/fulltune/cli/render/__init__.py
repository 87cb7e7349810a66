"""Text for a terminal, made from records."""
