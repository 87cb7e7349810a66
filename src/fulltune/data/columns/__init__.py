"""Infer what the columns of a table hold from their values, and which of them a task reads."""
