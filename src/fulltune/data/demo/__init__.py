"""Example data, generated: clauses, tales, and databases with questions. The same seed gives the same rows."""
