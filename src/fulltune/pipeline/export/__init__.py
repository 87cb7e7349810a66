"""Write a tuned model for other engines, and compare it with the original: ``fulltune export MODEL DIR --format F``.

Read :mod:`fulltune.pipeline.export.export` first: it has the steps in order.
"""
