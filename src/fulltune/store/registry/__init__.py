"""The registry of versions of tuned models, in one SQLite database."""
