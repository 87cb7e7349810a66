"""Propose a config for a user's data: which files, which task and columns, which base model, and why."""
