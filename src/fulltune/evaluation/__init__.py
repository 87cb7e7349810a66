"""Score systems: baselines, tuned models, and what a tuned model retains of its base."""
