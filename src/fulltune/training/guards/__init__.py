"""Guards: callbacks that watch over a training in any `transformers.Trainer`, one per file."""
