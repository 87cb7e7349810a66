"""Compute likelihoods of texts; shared contexts are encoded once, and logits are computed only where they are needed.

Consecutive texts with the same context (e.g. the labels of a row) are scored in one pass over that context. Texts with
the same prefix (e.g. the same shots) share its keys and values (:mod:`fulltune.models.prefix_cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from fulltune.errors import ModelError
from fulltune.models import fast_paths
from fulltune.models.bundle import Bundle
from fulltune.models.cache_names import cache_argument, cache_of
from fulltune.models.head_loss import LossAtHead, takes_loss_at_head
from fulltune.models.padding import pad, sorted_batches
from fulltune.models.prefix_cache import PrefixCache, last_logits
from fulltune.models.teacher_forcing import decoder_input_ids
from fulltune.models.token_ids import IGNORED, Text

#: Maximum bytes of the logits of one forward pass; larger batches are split.
LOGITS_BYTES = 512 * 1024 * 1024

#: A context is encoded once for several targets if it is at least this many times as long as each of them.
CONTEXT_RATIO = 2


@dataclass(frozen=True)
class Likelihood:
    """Sum of −ln p over the tokens of a target in nats, and the number of tokens."""

    nll: float
    tokens: int


def likelihoods(bundle: Bundle, texts: Iterable[Text], batch_size: int) -> Iterator[Likelihood]:
    """Yield the negative log-likelihood of each text's target in nats.

    Args:
        bundle: A decoder or an encoder-decoder.
        texts: Texts to score; consecutive texts with the same context are fastest.
        batch_size: Texts per forward pass.

    Raises:
        ModelError: A text is longer than the model's positions.
    """
    fast_paths.require_computable(bundle.model)
    scorer = _Scorer(bundle)
    prompt = bundle.prompt_ids
    checked = (_checked_text(bundle, text) for text in texts)
    prompted = (Text(prompt + text.context, text.target) for text in checked) if prompt else checked
    groups = _groups(prompted, batch_size)
    results: Iterator[list[Likelihood]] = sorted_batches(groups, scorer.score, _longest, batch_size)
    return chain.from_iterable(results)


def checked_length(bundle: Bundle, ids: Sequence[int]) -> Sequence[int]:
    """Return an input unchanged if it fits.

    Raises:
        ModelError: It is longer than the model's positions: some models would fail, others give wrong outputs.
    """
    if len(ids) > bundle.window:
        raise _too_long(bundle, "an input", len(ids), bundle.window)
    return ids


def _checked_text(bundle: Bundle, text: Text) -> Text:
    """Return a text unchanged if it fits into the model's positions.

    Raises:
        ModelError: It does not fit.
    """
    if bundle.family == "decoder":
        checked_length(bundle, text.context + text.target)
        return text
    checked_length(bundle, text.context)
    limit = bundle.answer_window
    if len(text.target) > limit:
        raise _too_long(bundle, "a target", len(text.target), limit)
    return text


def _too_long(bundle: Bundle, what: str, length: int, limit: int) -> ModelError:
    return ModelError(
        f"{what} of {length:,} tokens for {bundle.info.source}",
        expected=f"at most {limit:,}, the number of positions of the model",
        fix="shorten the text, or choose a model with more positions",
    )


def pad_id(bundle: Bundle) -> int:
    """Return the id for padding, which is always masked."""
    return int(bundle.tokenizer.pad_token_id or 0)


def _groups(texts: Iterable[Text], size: int) -> Iterator[list[Text]]:
    """Yield groups of at most ``size`` texts with the same context and short targets; every other text alone."""
    for _, run in groupby(texts, key=lambda text: text.context):
        group: list[Text] = []
        for text in run:
            is_short = 0 < CONTEXT_RATIO * len(text.target) <= len(text.context)
            if group and (len(group) == size or not is_short):
                yield group
                group = []
            group.append(text)
            if not is_short:
                yield group
                group = []
        if group:
            yield group


def _longest(group: Sequence[Text]) -> int:
    return max(map(len, group))


class _Scorer:
    """Scorer of batches of texts with one model."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.model = bundle.model
        self.prefixes = PrefixCache(bundle)
        self.options = fast_paths.options(bundle.model)
        head: Any = self.model.get_output_embeddings()
        self.at_head = LossAtHead(head)
        self.vocabulary = head.weight.shape[0]
        few = torch.ones(1, 4, dtype=torch.long, device=self.model.device)
        inputs = {"input_ids": few} | ({"decoder_input_ids": few} if bundle.family == "encoder-decoder" else {})
        fits, _ = fast_paths.attempt(
            lambda: takes_loss_at_head(self.model, head, inputs | self.options, few), self.model
        )
        self.at_head.fits = bool(fits)

    @torch.inference_mode()
    def score(self, batch: Sequence[list[Text]]) -> list[list[Likelihood]]:
        """Return the likelihoods of groups of texts."""
        nlls = {index: self._of_group(group) for index, group in enumerate(batch) if len(group) > 1}
        single = [index for index, group in enumerate(batch) if len(group) == 1]
        for index, nll in zip(single, self._of_texts([batch[index][0] for index in single]), strict=True):
            nlls[index] = [nll]
        results = []
        for index, group in enumerate(batch):
            pairs = zip(nlls[index], group, strict=True)
            results.append([Likelihood(nll, len(text.target)) for nll, text in pairs])
        return results

    def _checked(self, path: str, texts: Sequence[Text], compute: Callable[[], list[float]]) -> list[float] | None:
        """Return the losses of a fast path; None if they differ from those of plain forward passes."""

        def is_plain(nlls: list[float]) -> bool:
            compared = sorted({0, len(texts) - 1})
            plain = [self._run(*self._inputs([texts[index]]))[0] for index in compared]
            # The number of tokens is added, so that the tolerance is relative even if all losses are near 0.
            tokens = torch.tensor([[len(texts[index].target)] for index in compared], dtype=torch.float64)
            fast = [nlls[index] for index in compared]
            sums, fast_sums = (tokens + torch.tensor(losses)[:, None] for losses in (plain, fast))
            return fast_paths.agree([sums], [fast_sums], fast_paths.tolerance_of(self.model))

        lengths = [len(text) for text in texts]
        sizes = (max(lengths), max(lengths) - min(lengths))
        return fast_paths.verified(self.model, path, sizes, compute, is_plain)

    # ---- One context, many targets ----

    def _of_group(self, group: Sequence[Text]) -> list[float]:
        """Return the losses of texts with the same context."""
        context = group[0].context
        targets = [text.target for text in group]
        nlls = None
        if self.bundle.family == "encoder-decoder":
            nlls = self._checked("one pass of the encoder", group, lambda: self._after_encoder(context, targets))
        elif self.prefixes.is_usable and fast_paths.on_one_side(self.model, (len(context), *map(len, group))):
            nlls = self._checked("one pass over a context", group, lambda: self._after_context(context, targets))
        return self._of_texts(group) if nlls is None else nlls

    def _after_encoder(self, context: list[int], targets: Sequence[list[int]]) -> list[float]:
        """Return the losses of an encoder-decoder with one pass of the encoder."""
        ids, mask = pad([context], pad_id(self.bundle), self.model.device)
        states: Any = self.model.get_encoder()(input_ids=ids, attention_mask=mask)
        states.last_hidden_state = states.last_hidden_state.expand(len(targets), -1, -1)
        source = {"attention_mask": mask.expand(len(targets), -1), "encoder_outputs": states}
        return self._run(*self._restored(targets, source))

    def _after_context(self, context: list[int], targets: Sequence[list[int]]) -> list[float]:
        """Return the losses of a decoder with one pass over the context."""
        model: Any = self.model
        shared = self.prefixes.length([context])
        if not fast_paths.on_one_side(model, (shared, len(context))):
            shared = 0
        cache = self.prefixes.placed(context[:shared], [0]) if shared else DynamicCache()
        options: dict[str, Any] = {**self.options, "use_cache": True, cache_argument(model): cache}
        rest = torch.tensor([context[shared:]], device=model.device)
        mask = torch.ones(1, len(context), dtype=torch.long, device=model.device)
        outputs = model(input_ids=rest, attention_mask=mask, **options, **last_logits(model))
        log_probabilities = F.log_softmax(outputs.logits[0, -1].float(), dim=-1).double()
        nlls = -log_probabilities[[target[0] for target in targets]]
        if max(map(len, targets)) > 1:
            cache = cache_of(outputs)
            cache.batch_repeat_interleave(len(targets))
            ids, mask = pad([target[:-1] or target for target in targets], pad_id(self.bundle), model.device)
            labels, _ = pad([target[1:] or [IGNORED] for target in targets], IGNORED, model.device)
            context_mask = mask.new_ones(len(targets), len(context))
            options |= {"attention_mask": torch.cat([context_mask, mask], dim=1), cache_argument(model): cache}
            nlls = nlls + _sums(model(input_ids=ids, **options).logits, labels)
        result: list[float] = nlls.tolist()
        return result

    # ---- Each text by itself ----

    def _of_texts(self, texts: Sequence[Text]) -> list[float]:
        """Return the losses of texts with different contexts."""
        shared = self.prefixes.length([text.context for text in texts])
        if shared and fast_paths.on_one_side(self.model, (shared, *map(len, texts))):
            nlls = self._checked("a shared beginning", texts, lambda: self._after_prefix(texts, shared))
            if nlls is not None:
                return nlls
        losses: list[float] = []
        for batch in fast_paths.batches(self.model, texts, self._lengths):
            for part in self._parts(batch):
                losses += self._of_part(part)
        return losses

    def _of_part(self, texts: Sequence[Text]) -> list[float]:
        nlls = self._checked("padding of texts", texts, lambda: self._run(*self._inputs(texts)))
        return [self._run(*self._inputs([text]))[0] for text in texts] if nlls is None else nlls

    def _lengths(self, text: Text) -> tuple[int, ...]:
        is_decoder = self.bundle.family == "decoder"
        return (len(text),) if is_decoder else (len(text.context), len(text.target))

    def _parts(self, texts: Sequence[Text]) -> Iterator[Sequence[Text]]:
        """Yield all texts at once if the head computes the loss, else parts of at most :data:`LOGITS_BYTES`."""
        width = max(map(len, texts), default=1)
        rows = len(texts) if self.at_head.fits else max(1, LOGITS_BYTES // (4 * width * self.vocabulary))
        yield from (texts[start : start + rows] for start in range(0, len(texts), max(1, rows)))

    def _inputs(self, texts: Sequence[Text]) -> tuple[dict[str, Any], Tensor]:
        """Return the inputs of a forward pass and labels ``(B, T)`` that are aligned with its logits."""
        if self.bundle.family == "decoder":
            return self._continued(texts, 0)
        ids, mask = pad([text.context for text in texts], pad_id(self.bundle), self.model.device)
        return self._restored([text.target for text in texts], {"attention_mask": mask, "input_ids": ids})

    def _restored(self, targets: Sequence[list[int]], source: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """Return the inputs and labels of an encoder-decoder."""
        labels, _ = pad(targets, IGNORED, self.model.device)
        return {"decoder_input_ids": decoder_input_ids(self.model, labels), **source, **self.options}, labels

    def _continued(self, texts: Sequence[Text], shared: int) -> tuple[dict[str, Any], Tensor]:
        """Return the inputs and labels of a decoder, without the first ``shared`` ids."""
        device = self.model.device
        ids, mask = pad([(text.context + text.target)[shared:] for text in texts], pad_id(self.bundle), device)
        rows = [[IGNORED] * (len(text.context) - shared) + text.target for text in texts]
        labels, _ = pad(rows, IGNORED, device)
        inputs = {"input_ids": ids, "attention_mask": mask, **self.options}
        return inputs, F.pad(labels[:, 1:], (0, 1), value=IGNORED)

    def _after_prefix(self, texts: Sequence[Text], shared: int) -> list[float]:
        """Return the losses of texts whose first ``shared`` ids are in the prefix cache."""
        losses: list[float] = []
        for part in self._parts(texts):
            inputs, labels = self._continued(part, shared)
            prefix_mask = inputs["attention_mask"].new_ones(len(part), shared)
            cache = self.prefixes.placed(part[0].context[:shared], [0] * len(part))
            mask = torch.cat([prefix_mask, inputs["attention_mask"]], dim=1)
            options = {"attention_mask": mask, cache_argument(self.model): cache, "use_cache": True}
            losses += self._run(inputs | options, labels)
        return losses

    def _run(self, inputs: dict[str, Any], labels: Tensor) -> list[float]:
        """Return the sum of −ln p of each row's labels ``(B, T)``, which are aligned with the logits."""
        run = self.at_head.run(self.model, inputs, labels, 0.0)
        if run is None:
            sums = _sums(self.model(**inputs).logits, labels)
        else:
            sums = run[1].losses.sum(dim=1, dtype=torch.float64)
        losses: list[float] = sums.tolist()
        return losses


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of −ln p of each row, in double precision."""
    losses = F.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none", ignore_index=IGNORED)
    return losses.sum(dim=1, dtype=torch.float64)
