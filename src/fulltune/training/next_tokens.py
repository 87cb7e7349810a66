"""Labels of a decoder where its own loss reads them.

Most decoders take labels that are the input itself and move them by one. Those that are cut from encoder-decoders
(BART's, Whisper's, TrOCR's) compare them with the logits as they are: with the input for labels such a model would
learn to copy it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from fulltune.models.bundle import Bundle
from fulltune.models.causality import check_causality
from fulltune.models.losses import IGNORED
from fulltune.runtime.log_once import log_once
from fulltune.tasks.base import Features
from fulltune.training.loss_check import check_loss

_log = logging.getLogger(__name__)


def aligned_labels(bundle: Bundle, features: Sequence[Features]) -> Sequence[Features]:
    """Return the features with labels that the model's loss reads as the next tokens.

    Args:
        bundle: Any model; only the labels of decoders with a head for words can change.
        features: As tasks make them: each label is the token of its own position.

    Raises:
        ModelError: The decoder reads in both directions (XLNet), so that there is no next token to predict.
    """
    if bundle.family != "decoder" or bundle.head != "lm" or check_loss(bundle.model, "causal").kind != "token":
        return features
    check_causality(bundle.info.source, bundle.model)
    name, message = (
        type(bundle.model).__name__,
        "%s compares labels with logits as they are: they are moved by one here",
    )
    log_once(_log, logging.INFO, name, message, name)
    return [_moved(one) for one in features]


def _moved(features: Features) -> Features:
    labels = features.labels
    return replace(features, labels=[*labels[1:], IGNORED]) if isinstance(labels, list) else features
