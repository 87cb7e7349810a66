"""Measure abilities by likelihoods: general text, corrupted spans, masked tokens, minimal pairs.

The model must have its pretraining head. Corruptions and masks are drawn from the index of the row, so that they are
the same for the base and the tuned model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fulltune.evaluation.retention.probe import Passage
from fulltune.metrics.base import Array, Metric
from fulltune.metrics.ratios import mean_of, numbers
from fulltune.models import inference
from fulltune.models.bundle import Bundle
from fulltune.records.run import Prediction
from fulltune.tasks import prompts
from fulltune.training.regularization.denoising import corrupted, masked, sentinel_ids


def _nll_per_token(prediction: Prediction) -> Array | None:
    return numbers(prediction, "nll", "tokens")


def _loss(name: str, label: str, source: str) -> Metric:
    return mean_of(_nll_per_token, name=name, direction="lower", source=source, label=label, percent=False)


span_loss = _loss(
    "span_loss", "loss of corrupted spans", "sum of nll / tokens of the corrupted spans (Raffel et al. 2020, 3.1.4)"
)
infilling_loss = _loss(
    "infilling_loss", "loss of restored text", "sum of nll / tokens of the whole text restored (Lewis et al. 2020)"
)
masked_loss = _loss("masked_loss", "masked loss", "sum of nll / masked tokens (Devlin et al. 2019)")


def _prefers_good(prediction: Prediction) -> Array | None:
    losses = numbers(prediction, "good_nll", "bad_nll")
    return None if losses is None else np.array([float(losses[0] < losses[1]), 1.0])


pair_accuracy = mean_of(
    _prefers_good,
    name="pair_accuracy",
    direction="higher",
    source="fraction of pairs whose good text is more likely (Warstadt et al. 2020, BLiMP)",
    label="pairs right",
)


# ---- General text ----


def denoising_metric(bundle: Bundle) -> Metric:
    """Return the metric of an encoder-decoder's pretraining objective: corrupted spans, or infilling."""
    return span_loss if sentinel_ids(bundle) else infilling_loss


def denoising(bundle: Bundle, passages: Sequence[Passage], batch_size: int) -> Iterator[Prediction]:
    """Yield the losses of restoring corrupted passages with an encoder-decoder."""
    rows = [(passage, corrupted(bundle, passage.text, row)) for row, passage in enumerate(passages)]
    rows = [(passage, text) for passage, text in rows if text.target]
    likelihoods = inference.likelihoods(bundle, (text for _, text in rows), batch_size)
    for (passage, _), likelihood in zip(rows, likelihoods, strict=True):
        yield _prediction(passage.id, passage.text, nll=likelihood.nll, tokens=likelihood.tokens)


def masking(bundle: Bundle, passages: Sequence[Passage], batch_size: int) -> Iterator[Prediction]:
    """Yield the losses on masked tokens of an encoder with a masked-LM head."""
    rows = [(passage, *masked(bundle, passage.text, row)) for row, passage in enumerate(passages)]
    rows = [row for row in rows if row[2]]
    outputs = inference.mask_log_probabilities(bundle, (ids for _, ids, _ in rows), batch_size)
    for (passage, _, targets), log_probabilities in zip(rows, outputs, strict=True):
        nll = -float(log_probabilities.double()[range(len(targets)), list(targets.values())].sum())
        yield _prediction(passage.id, passage.text, nll=nll, tokens=len(targets))


# ---- Minimal pairs ----


def pairs(bundle: Bundle, rows: Sequence[tuple[str, str, str]], batch_size: int) -> Iterator[Prediction]:
    """Yield the negative log-likelihoods of both texts of each ``(id, good, bad)``.

    Those of an encoder are pseudo-log-likelihoods (Salazar et al. 2020).
    """
    score = _pseudo_nll if bundle.family == "encoder" else _decoder_nll
    losses = score(bundle, [text for _, good, bad in rows for text in (good, bad)], batch_size)
    for row_id, good, _ in rows:
        yield _prediction(row_id, good, good_nll=next(losses), bad_nll=next(losses))


def _decoder_nll(bundle: Bundle, texts: Sequence[str], batch_size: int) -> Iterator[float]:
    """Yield the negative log-likelihood of each text in nats."""
    encoded = [prompts.opening_ids(bundle) + prompts.text_ids(bundle, text) for text in texts]
    parts = (inference.Text(ids[:1], ids[1:]) for ids in encoded)
    return (likelihood.nll for likelihood in inference.likelihoods(bundle, parts, batch_size))


def _pseudo_nll(bundle: Bundle, texts: Sequence[str], batch_size: int) -> Iterator[float]:
    """Yield the negative pseudo-log-likelihood of each text in nats: every token is masked in turn."""
    encoded = [list(bundle.tokenizer(text, truncation=False, verbose=False).input_ids) for text in texts]
    special = set(bundle.tokenizer.all_special_ids)
    positions = [[index for index, token in enumerate(ids) if token not in special] for ids in encoded]
    mask = int(bundle.tokenizer.mask_token_id)

    def masked_inputs() -> Iterator[list[int]]:
        for ids, indices in zip(encoded, positions, strict=True):
            for index in indices:
                yield [*ids[:index], mask, *ids[index + 1 :]]

    outputs = inference.mask_log_probabilities(bundle, masked_inputs(), batch_size)
    for ids, indices in zip(encoded, positions, strict=True):
        yield -sum(float(next(outputs)[0, ids[index]]) for index in indices)


def _prediction(row_id: str, text: str, **values: float) -> Prediction:
    return Prediction(system="", id=row_id, input=text, reference="", output="", values=values)
