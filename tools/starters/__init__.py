"""Make the starters: small pretrained checkpoints, from any folder of text."""
