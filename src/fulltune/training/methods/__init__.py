"""Methods of fine-tuning, one per file."""
