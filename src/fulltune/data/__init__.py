"""Read files to rows, split them, and audit them before training."""
