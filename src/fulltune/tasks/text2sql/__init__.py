"""Text to SQL: run a query safely, compare results, put queries and schemas into one form."""
