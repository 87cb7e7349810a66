"""Retention: what the base could do, scored before training and after it, on the same rows.

    memory = Memory.of(config, base, out)      # scores the base now; training may overwrite it
    …                                          # training
    memory.compare(student)                    # {"general text (en)": Retention(…), …}

What is asked depends on the family: bits per byte of general text (decoders), the loss of restoring corrupted spans
(encoder-decoders), the loss of masked tokens (encoders with a masked-LM head), or the representation itself and what a
linear classifier still reads from it (other encoders). A model that was given a new head is asked with the base's own
head put back on its body.
"""

from __future__ import annotations

from fulltune.evaluation.retention.abilities import check_sets
from fulltune.evaluation.retention.memory import Memory, sentence

__all__ = ["Memory", "check_sets", "sentence"]
