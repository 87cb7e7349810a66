"""Where runs live: folders with atomic writes, and the cache of baselines."""
