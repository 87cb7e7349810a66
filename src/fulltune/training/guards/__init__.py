"""What watches training: one file a guard, each a callback for any `transformers.Trainer`."""
