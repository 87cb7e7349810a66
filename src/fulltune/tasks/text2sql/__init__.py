"""Text to SQL: execute queries safely, compare results, and normalize queries and schemas."""
