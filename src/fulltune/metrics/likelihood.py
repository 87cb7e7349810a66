"""Likelihood metrics: exact ratios of sums, which do not depend on the batch size.

They read ``values["nll"]`` (summed negative log-likelihood of the row in nats), ``values["tokens"]`` (number of
predicted tokens in that sum) and ``values["bytes"]`` (length of the predicted text in UTF-8 bytes).
"""

from __future__ import annotations

import math

import numpy as np

from fulltune.metrics.base import Array, Metric
from fulltune.metrics.ratios import numbers, ratio
from fulltune.records.run import Prediction


def _nll_per_byte(prediction: Prediction) -> Array | None:
    return numbers(prediction, "nll", "bytes")


def _nll_per_token(prediction: Prediction) -> Array | None:
    return numbers(prediction, "nll", "tokens")


def _bits_per_byte(sums: Array) -> Array:
    return ratio(sums[..., 0], sums[..., 1] * math.log(2))


def _perplexity(sums: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.exp(ratio(sums[..., 0], sums[..., 1]))


bits_per_byte = Metric(
    name="bits_per_byte",
    direction="lower",
    version=1,
    source="sum of nll / ln 2 / sum of UTF-8 bytes; comparable across tokenizers (Gao et al. 2020, The Pile)",
    statistics=_nll_per_byte,
    value=_bits_per_byte,
    percent=False,
    label="bits per byte",
    ratio=(0, 1),
    reads_answers=False,
    worthless=8.0,  # all 256 bytes are equally likely
)

perplexity = Metric(
    name="perplexity",
    direction="lower",
    version=1,
    source="exp(sum of nll / sum of tokens), per token of the model's own tokenizer (Jelinek et al. 1977)",
    statistics=_nll_per_token,
    value=_perplexity,
    percent=False,
    label="perplexity",
    reads_answers=False,
)
