"""Compute baselines: systems without training, on the same rows as the tuned model.

``catalog`` names all of them. Each is a function from :class:`~fulltune.evaluation.baselines.base.Given` and examples
to :class:`~fulltune.evaluation.baselines.base.Answers`, and chooses its options on rows of train only. Answers are
cached by a hash of everything that they depend on, so that a second run on the same data does not compute them again.
"""
