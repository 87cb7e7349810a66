"""Align the labels of a decoder with its loss.

Most decoders take the input as labels and shift them by one. Decoders that are parts of encoder-decoders (those of
BART, Whisper and TrOCR) do not shift: with the input as labels, such a model would be trained to copy it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from fulltune.models.bundle import Bundle
from fulltune.models.causality import check_causality
from fulltune.models.token_ids import IGNORED
from fulltune.runtime.log_once import log_once
from fulltune.tasks.base import Features
from fulltune.training.loss_check import check_loss

_log = logging.getLogger(__name__)


def aligned_labels(bundle: Bundle, features: Sequence[Features]) -> Sequence[Features]:
    """Return features whose labels are next tokens for the loss of the model.

    Args:
        bundle: Any model; only the labels of decoders with a language-model head can change.
        features: Features of a task, in which each label is the token of its own position.

    Raises:
        ModelError: The decoder reads in both directions (XLNet), so that there is no next token to predict.
    """
    if bundle.family != "decoder" or bundle.head != "lm" or check_loss(bundle.model, "causal").kind != "token":
        return features
    check_causality(bundle.info.source, bundle.model)
    name = type(bundle.model).__name__
    log_once(_log, logging.INFO, name, "%s does not shift labels: they are shifted here", name)
    return [_shifted(one) for one in features]


def _shifted(features: Features) -> Features:
    labels = features.labels
    return replace(features, labels=[*labels[1:], IGNORED]) if isinstance(labels, list) else features
