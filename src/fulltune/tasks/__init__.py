"""Tasks: definitions of examples, prompts and scoring."""
