"""Measure retention: abilities of the base model before and after training, on the same rows.

    base_outputs = BaseOutputs.collect(config, base, out)   # runs the base now, before training overwrites it
    …                                                       # training
    base_outputs.compare(tuned)                             # {"general text (en)": Retention(…), …}

The measure depends on the model family: bits per byte of general text (decoders), the loss on corrupted spans
(encoder-decoders), the loss on masked tokens (encoders with a masked-LM head), or the similarity of representations and
the accuracy of a linear probe on them (other encoders). A tuned model with a new head is measured with the base's own
head on its body.
"""

from __future__ import annotations

from fulltune.evaluation.retention.base_outputs import BaseOutputs, sentence

__all__ = ["BaseOutputs", "sentence"]
