"""Training: the drop-in :class:`~fulltune.training.trainer.Trainer` and its parts."""
