"""Abilities that are likelihoods: general text, corrupted spans, masked tokens, minimal pairs.

Each is a function of a model that still has the head it was pretrained with; what is hidden from it is drawn from the
number of the row alone, so that the base and the tuned model are asked the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fulltune.evaluation.retention.probe import Passage
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.ratios import mean, numbers, ratio
from fulltune.models import inference
from fulltune.models.bundle import Bundle
from fulltune.records.run import Prediction
from fulltune.tasks import prompts
from fulltune.training.regularization.denoising import corrupted, masked, sentinel_ids


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


# ---- General text ----


def denoising_metric(bundle: Bundle) -> Metric:
    return span_loss if sentinel_ids(bundle) else infilling_loss


def denoising(bundle: Bundle, passages: Sequence[Passage], batch_size: int) -> Iterator[Prediction]:
    """The loss of restoring what was corrupted, by an encoder-decoder."""
    rows = [(passage, corrupted(bundle, passage.text, row)) for row, passage in enumerate(passages)]
    rows = [(passage, asked) for passage, asked in rows if asked.target]
    found_all = inference.likelihoods(bundle, (asked for _, asked in rows), batch_size)
    for (passage, _), found in zip(rows, found_all, strict=True):
        yield _answer(passage.id, passage.text, nll=found.nll, tokens=found.tokens)


def masking(bundle: Bundle, passages: Sequence[Passage], batch_size: int) -> Iterator[Prediction]:
    """The loss of masked tokens, by an encoder with a masked-LM head."""
    rows = [(passage, *masked(bundle, passage.text, row)) for row, passage in enumerate(passages)]
    rows = [row for row in rows if row[2]]
    found = inference.mask_log_probabilities(bundle, (ids for _, ids, _ in rows), batch_size)
    for (passage, _, hidden), logs in zip(rows, found, strict=True):
        nll = -float(logs.double()[range(len(hidden)), list(hidden.values())].sum())
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
    asked = [prompts.opening_ids(bundle) + prompts.text_ids(bundle, text) for text in texts]
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
