"""What a checkpoint's files say about themselves, checked and reconciled when it is loaded."""
