"""Run folders, the registry, and the cache of baselines."""
