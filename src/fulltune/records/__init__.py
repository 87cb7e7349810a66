"""Define the JSON records of runs and experiments."""
