"""Ways to keep a model close to its base or to make it depend less on single rows."""
