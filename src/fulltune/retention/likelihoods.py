"""Abilities that are likelihoods: general text, corrupted spans, masked tokens, minimal pairs.

Each is a function of a model that still has the head it was pretrained with; what is hidden from it is drawn from the
number of the row alone, so that the base and the tuned model are asked the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fulltune import inference
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.ratios import mean, numbers, ratio
from fulltune.model import Bundle
from fulltune.records import Prediction
from fulltune.retention.probe import Passage
from fulltune.starters.families import corrupt
from fulltune.tasks import prompts

#: Share of an encoder's tokens that are masked (Devlin et al. 2019).
MASKED = 0.15

#: Tokens of a passage that an encoder or an encoder-decoder reads.
LONGEST = 256

_SENTINEL = re.compile(r"<extra_id_(\d+)>")

#: Stands for a span in the source where the tokenizer has no token for that; taken out again.
_GAP = -1


def _nll_per_token(prediction: Prediction) -> Array | None:
    return numbers(prediction, "nll", "tokens")


def _per_token(sums: Array) -> Array:
    return ratio(sums[..., 0], sums[..., 1])


def _loss(name: str, label: str, source: str) -> Metric:
    return Metric(name, "lower", 1, source, _nll_per_token, _per_token, percent=False, label=label)


span_loss = _loss(
    "span_loss", "loss of corrupted spans", "sum of nll / tokens of the corrupted spans (Raffel et al. 2020, 3.1.4)"
)
infilling_loss = _loss(
    "infilling_loss", "loss of restored text", "sum of nll / tokens of the whole text restored (Lewis et al. 2020)"
)
masked_loss = _loss("masked_loss", "masked loss", "sum of nll / masked tokens (Devlin et al. 2019)")


def _prefers_good(prediction: Prediction) -> Array | None:
    found = numbers(prediction, "good_nll", "bad_nll")
    return None if found is None else np.array([float(found[0] < found[1]), 1.0])


pair_accuracy = Metric(
    name="pair_accuracy",
    direction="higher",
    version=1,
    source="share of pairs whose good text is the likelier one (Warstadt et al. 2020, BLiMP)",
    statistics=_prefers_good,
    value=mean,
    label="pairs right",
)


# ---- Encoder-decoders: corrupted spans ----


def sentinel_ids(bundle: Bundle) -> list[int]:
    """The tokens that stand for spans, in order; none for a model that was pretrained without them."""
    found = [(match, token) for name, token in bundle.tokenizer.get_vocab().items() if (match := _SENTINEL.match(name))]
    return [token for match, token in sorted(found, key=lambda pair: int(pair[0][1]))]


def corrupted(bundle: Bundle, text: str, row: int) -> inference.Text:
    """A text as source and target, as close to the model's pretraining as its tokenizer tells.

    With sentinels: span corruption, as T5 learnt. With a mask token: every span becomes one mask and the whole text is
    the target, as BART learnt. With neither: spans are taken out and the whole text is the target.
    """
    room = min(LONGEST, bundle.window) - len(bundle.tokenizer("").input_ids) - 1
    ids = np.array(prompts.text_ids(bundle, text)[:room])
    ends = prompts.end_ids(bundle)
    random, sentinels = np.random.default_rng([17, row]), sentinel_ids(bundle)
    if sentinels and ends:
        source, target = corrupt(ids, sentinels, ends[0], random)
        return inference.Text(source.tolist(), target.tolist())
    mask = bundle.tokenizer.mask_token_id
    source, _ = corrupt(ids, [_GAP if mask is None else int(mask)] * len(ids), _GAP, random)
    kept = [int(token) for token in source[:-1] if token != _GAP]
    return inference.Text(_framed(bundle, kept), [*ids.tolist(), *ends])


def _framed(bundle: Bundle, ids: list[int]) -> list[int]:
    """The ids with what the tokenizer puts around a text."""
    frame, ends = list(bundle.tokenizer("").input_ids), prompts.end_ids(bundle)
    closes = bool(frame) and frame[-1:] == ends
    return [*(frame[:-1] if closes else frame), *ids, *(ends if closes else [])]


def denoising_metric(bundle: Bundle) -> Metric:
    return span_loss if sentinel_ids(bundle) else infilling_loss


def denoising(bundle: Bundle, passages: Sequence[Passage], batch_size: int) -> Iterator[Prediction]:
    """The loss of restoring what was corrupted, by an encoder-decoder."""
    kept = [passage for passage in passages if len(prompts.text_ids(bundle, passage.text)) > 1]
    texts = (corrupted(bundle, passage.text, row) for row, passage in enumerate(kept))
    for passage, found in zip(kept, inference.likelihoods(bundle, texts, batch_size), strict=True):
        yield _answer(passage.id, passage.text, nll=found.nll, tokens=found.tokens)


# ---- Encoders: masked tokens ----


def masked(bundle: Bundle, text: str, row: int) -> tuple[list[int], list[int]]:
    """A text with :data:`MASKED` of its tokens masked, and the tokens that were there, in order; never an empty list
    where the text has a token.
    """
    window = min(LONGEST, bundle.window)
    ids = prompts.cut(list(bundle.tokenizer(text, truncation=False, verbose=False).input_ids), window)
    special = set(bundle.tokenizer.all_special_ids)
    places = [index for index, token in enumerate(ids) if token not in special]
    count = min(len(places), max(1, round(MASKED * len(places))))
    chosen = sorted(np.random.default_rng([17, row]).choice(len(places), size=count, replace=False).tolist())
    hidden = [ids[places[index]] for index in chosen]
    for index in chosen:
        ids[places[index]] = int(bundle.tokenizer.mask_token_id)
    return ids, hidden


def masking(bundle: Bundle, passages: Sequence[Passage], batch_size: int) -> Iterator[Prediction]:
    """The loss of masked tokens, by an encoder with a masked-LM head."""
    rows = [(passage, *masked(bundle, passage.text, row)) for row, passage in enumerate(passages)]
    rows = [row for row in rows if row[2]]
    found = inference.mask_log_probabilities(bundle, (ids for _, ids, _ in rows), batch_size)
    for (passage, _, hidden), logs in zip(rows, found, strict=True):
        nll = -float(logs.double()[range(len(hidden)), hidden].sum())
        yield _answer(passage.id, passage.text, nll=nll, tokens=len(hidden))


# ---- Minimal pairs ----


def pairs(bundle: Bundle, rows: Sequence[tuple[str, str, str]], batch_size: int) -> Iterator[Prediction]:
    """Negative log-likelihoods of both texts of each ``(id, good, bad)``; an encoder's are pseudo-log-likelihoods
    (Salazar et al. 2020).
    """
    score = _pseudo_nll if bundle.family == "encoder" else _decoder_nll
    found = score(bundle, [text for _, good, bad in rows for text in (good, bad)], batch_size)
    for row_id, good, _ in rows:
        yield _answer(row_id, good, good_nll=next(found), bad_nll=next(found))


def _decoder_nll(bundle: Bundle, texts: Sequence[str], batch_size: int) -> Iterator[float]:
    asked = [prompts.start_ids(bundle) + prompts.text_ids(bundle, text) for text in texts]
    parts = (inference.Text(ids[:1], ids[1:]) for ids in asked)
    return (found.nll for found in inference.likelihoods(bundle, parts, batch_size))


def _pseudo_nll(bundle: Bundle, texts: Sequence[str], batch_size: int) -> Iterator[float]:
    encoded = [list(bundle.tokenizer(text, truncation=False, verbose=False).input_ids) for text in texts]
    special = set(bundle.tokenizer.all_special_ids)
    places = [[index for index, token in enumerate(ids) if token not in special] for ids in encoded]
    mask = int(bundle.tokenizer.mask_token_id)
    asked: Iterable[list[int]] = (
        [*ids[:index], mask, *ids[index + 1 :]] for ids, where in zip(encoded, places, strict=True) for index in where
    )
    logs = inference.mask_log_probabilities(bundle, asked, batch_size)
    for ids, where in zip(encoded, places, strict=True):
        yield -sum(float(next(logs)[0, ids[index]]) for index in where)


def _answer(row_id: str, text: str, **values: float) -> Prediction:
    return Prediction(system="", id=row_id, input=text, reference="", output="", values=values)
