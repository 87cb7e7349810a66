"""General text as a model's own pretraining asked it: what is hidden, and what must be restored.

What is hidden is drawn from the number of the row alone, so that two models are asked the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fulltune.models.bundle import Bundle
from fulltune.models.inference import Text, end_ids, text_ids

#: Share of an encoder's tokens that are masked (Devlin et al. 2019).
MASKED = 0.15

#: Share of an encoder-decoder's tokens that are corrupted, and the mean length of a span (Raffel et al. 2020).
CORRUPTED, MEAN_SPAN = 0.15, 3.0

#: Tokens of a text that an encoder or an encoder-decoder reads.
LONGEST = 256

_SENTINEL = re.compile(r"<extra_id_(\d+)>")

#: Stands for a span in the source where the tokenizer has no token for that; taken out again.
_GAP = -1


def sentinel_ids(bundle: Bundle) -> list[int]:
    """The tokens that stand for spans, in order; none for a model that was pretrained without them."""
    found = [(match, token) for name, token in bundle.tokenizer.get_vocab().items() if (match := _SENTINEL.match(name))]
    return [token for match, token in sorted(found, key=lambda pair: int(pair[0][1]))]


def corrupted(bundle: Bundle, text: str, row: int) -> Text:
    """A text as source and target, as close to the model's pretraining as its tokenizer tells.

    With sentinels: span corruption, as T5 learnt. With a mask token: every span becomes one mask and the whole text is
    the target, as BART learnt. With neither: spans are taken out and the whole text is the target. A text of fewer than
    two tokens has nothing to corrupt, and an empty target.
    """
    room = min(LONGEST, bundle.window) - len(bundle.tokenizer("").input_ids) - 1
    ids = np.array(text_ids(bundle, text)[:room])
    ends = end_ids(bundle)
    if len(ids) < 2:
        return Text(ids.tolist(), [])
    random, sentinels = np.random.default_rng([17, row]), sentinel_ids(bundle)
    if sentinels and ends:
        source, target = corrupt(ids, sentinels, ends[0], random)
        return Text(source.tolist(), target.tolist())
    mask = bundle.tokenizer.mask_token_id
    source, _ = corrupt(ids, [_GAP if mask is None else int(mask)] * len(ids), _GAP, random)
    kept = [int(token) for token in source[:-1] if token != _GAP]
    return Text(_framed(bundle, kept), [*ids.tolist(), *ends])


def _framed(bundle: Bundle, ids: list[int]) -> list[int]:
    """The ids with what the tokenizer puts around a text."""
    frame, ends = list(bundle.tokenizer("").input_ids), end_ids(bundle)
    closes = bool(frame) and frame[-1:] == ends
    return [*(frame[:-1] if closes else frame), *ids, *(ends if closes else [])]


def masked(bundle: Bundle, text: str, row: int) -> tuple[list[int], dict[int, int]]:
    """A text with :data:`MASKED` of its tokens masked (at least one), and what stood at each masked place, in order."""
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
    share: float = CORRUPTED,
    mean_span: float = MEAN_SPAN,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Span corruption (Raffel et al. 2020, section 3.1.4): ``(T,)`` tokens to a source and a target.

    Every corrupted span is one sentinel in the source; the target lists each sentinel with its span, then ``end``.
    Texts of equal length give sources and targets of equal length.
    """
    corrupted = max(1, round(len(ids) * share))
    spans = min(max(1, round(corrupted / mean_span)), len(sentinels), len(ids) - corrupted)
    holes, kept = _cut(corrupted, spans, random), _cut(len(ids) - corrupted, spans, random)
    source, target, at = list[int](), list[int](), 0
    for sentinel, keep, hole in zip(sentinels, kept, holes, strict=False):
        source += [*ids[at : at + keep].tolist(), sentinel]
        target += [sentinel, *ids[at + keep : at + keep + hole].tolist()]
        at += keep + hole
    return np.array([*source, end]), np.array([*target, end])


def _cut(total: int, parts: int, random: np.random.Generator) -> list[int]:
    """``parts`` positive numbers that sum to ``total``, every way of cutting being equally likely."""
    inner = np.sort(random.choice(total - 1, size=parts - 1, replace=False)) + 1
    widths: list[int] = np.diff([0, *inner.tolist(), total]).tolist()
    return widths
