"""Evaluate baselines and tuned models, and measure what a tuned model retains of its base."""
