"""Example data: clauses of contracts, tales, and databases with questions. ``tools/demo`` generates them."""
