"""Tasks: what an example is, how it is asked, and how an answer is scored."""
