"""Corrupt general text as in the pretraining of a model: hide tokens, which the model must restore.

The hidden tokens depend on the number of the row only, so that two models get the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.models.bundle import Bundle
from fulltune.models.token_ids import Text, end_ids, text_ids

#: Fraction of the tokens of an encoder that are masked (Devlin et al. 2019).
MASKED = 0.15

#: Fraction of the tokens of an encoder-decoder that are corrupted (Raffel et al. 2020).
CORRUPTED = 0.15

#: Mean length of a corrupted span (Raffel et al. 2020).
MEAN_SPAN = 3.0

#: Largest number of tokens of a text for an encoder or an encoder-decoder.
LONGEST = 256

_SENTINEL = re.compile(r"<extra_id_(\d+)>")

#: Temporary id of a span in the source if the tokenizer has no token for it.
_GAP = -1


def sentinel_ids(bundle: Bundle) -> list[int]:
    """Return the sentinel tokens of spans, in order; none for a model that was pretrained without them."""
    tokens: dict[int, int] = {}
    for name, token in bundle.tokenizer.get_vocab().items():
        match = _SENTINEL.match(name)
        if match:
            tokens[int(match[1])] = token
    return [tokens[number] for number in sorted(tokens)]


def corrupted(bundle: Bundle, text: str, row: int) -> Text:
    """Return the source and target of a text, as in the pretraining of the model.

    With sentinel tokens this is the span corruption of T5. With a mask token, every span becomes one mask and the
    complete text is the target, as for BART. With neither, spans are removed and the complete text is the target.

    A text of fewer than two tokens cannot be corrupted and has an empty target.
    """
    room = min(LONGEST, bundle.window) - len(bundle.tokenizer("").input_ids) - 1
    ids = np.array(text_ids(bundle, text)[:room])
    ends = end_ids(bundle)
    if len(ids) < 2:
        return Text(ids.tolist(), [])
    random = np.random.default_rng([17, row])
    sentinels = sentinel_ids(bundle)
    if sentinels and ends:
        source, target = corrupt(ids, sentinels, ends[0], random)
        return Text(source.tolist(), target.tolist())
    mask = bundle.tokenizer.mask_token_id
    source, _ = corrupt(ids, [_GAP if mask is None else int(mask)] * len(ids), _GAP, random)
    kept = [int(token) for token in source[:-1] if token != _GAP]
    return Text(_framed(bundle, kept), [*ids.tolist(), *ends])


def _framed(bundle: Bundle, ids: list[int]) -> list[int]:
    """Return ids with the special tokens that the tokenizer adds around a text."""
    frame = list(bundle.tokenizer("").input_ids)
    ends = end_ids(bundle)
    closes = bool(frame) and frame[-1:] == ends
    return [*(frame[:-1] if closes else frame), *ids, *(ends if closes else [])]


def masked(bundle: Bundle, text: str, row: int) -> tuple[list[int], dict[int, int]]:
    """Return a text with the fraction :data:`MASKED` of its tokens masked, and the original token of each position."""
    ids = list(bundle.tokenizer(text, truncation=False, verbose=False).input_ids)
    window = min(LONGEST, bundle.window)
    ids = ids if len(ids) <= window else [*ids[: window - 1], ids[-1]]
    special = set(bundle.tokenizer.all_special_ids)
    places = [index for index, token in enumerate(ids) if token not in special]
    count = min(len(places), max(1, round(MASKED * len(places))))
    random = np.random.default_rng([17, row])
    chosen = sorted(random.choice(len(places), size=count, replace=False).tolist()) if places else []
    hidden = {places[index]: ids[places[index]] for index in chosen}
    for place in hidden:
        ids[place] = int(bundle.tokenizer.mask_token_id)
    return ids, hidden


def corrupt(
    ids: NDArray[Any],
    sentinels: Sequence[int],
    end: int,
    random: np.random.Generator,
    fraction: float = CORRUPTED,
    mean_span: float = MEAN_SPAN,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the source and target of span corruption (Raffel et al. 2020, section 3.1.4).

    Every corrupted span is one sentinel in the source; the target has each sentinel with its span, then ``end``. Texts
    of equal length have sources and targets of equal length.

    Args:
        ids: Tokens, ``(T,)``.
        sentinels: Tokens that replace spans, in order.
        end: Last token of source and target.
        random: Draws the spans.
        fraction: Fraction of the tokens that are corrupted.
        mean_span: Mean length of a span.
    """
    corrupted = max(1, round(len(ids) * fraction))
    spans = min(max(1, round(corrupted / mean_span)), len(sentinels), len(ids) - corrupted)
    holes = _cut(corrupted, spans, random)
    kept = _cut(len(ids) - corrupted, spans, random)
    source = list[int]()
    target = list[int]()
    at = 0
    for sentinel, keep, hole in zip(sentinels, kept, holes, strict=False):
        source += [*ids[at : at + keep].tolist(), sentinel]
        target += [sentinel, *ids[at + keep : at + keep + hole].tolist()]
        at += keep + hole
    return np.array([*source, end]), np.array([*target, end])


def _cut(total: int, parts: int, random: np.random.Generator) -> list[int]:
    """Return ``parts`` positive numbers that sum to ``total``, uniformly among all such numbers."""
    inner = np.sort(random.choice(total - 1, size=parts - 1, replace=False)) + 1
    widths: list[int] = np.diff([0, *inner.tolist(), total]).tolist()
    return widths
