"""Training: the drop-in :class:`~fulltune.training.trainer.Trainer` and what it is made of."""
