"""Likelihoods of texts: what they share is read once, and logits are made only where something is predicted.

Texts that follow one another with the same context (the labels of a row, say) are asked in one pass over that context.
Texts that begin alike (with the same shots) share the keys and values of that beginning
(:mod:`fulltune.models.prefix_cache`).
"""

from __future__ import annotations

import sys
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
from fulltune.models.head_loss import LossAtHead, takes_loss_at_head
from fulltune.models.losses import IGNORED
from fulltune.models.padding import pad, sorted_batches
from fulltune.models.prefix_cache import PrefixCache, last_logits
from fulltune.models.teacher_forcing import decoder_input_ids

#: Largest logits tensor of one forward pass, in bytes: longer or wider batches are cut into smaller ones.
LOGITS_BYTES = 512 * 1024 * 1024

#: A context is read once for all targets that follow it when it is this many times as long as they are.
MUCH_LONGER = 2


@dataclass(frozen=True)
class Text:
    """A text to be scored: ``target`` token ids, each predicted from all ids before it, ``context`` first.

    A decoder needs at least one id of context; an encoder-decoder reads the context in its encoder.
    """

    context: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.context) + len(self.target)


@dataclass(frozen=True)
class Likelihood:
    """Σ −ln p over the target's tokens, and how many there were."""

    nll: float
    tokens: int


def likelihoods(bundle: Bundle, texts: Iterable[Text], batch_size: int) -> Iterator[Likelihood]:
    """Negative log-likelihood in nats of each text's target.

    Args:
        bundle: A decoder or an encoder-decoder.
        texts: What is asked; texts with one context in a row are cheapest.
        batch_size: Texts of one pass.

    Raises:
        ModelError: A text is longer than the model's positions.
    """
    fast_paths.require_computable(bundle.model)
    scorer, prompt = _Scorer(bundle), bundle.prompt_ids
    fitting = (_checked_text(bundle, text) for text in texts)
    asked = (Text(prompt + text.context, text.target) for text in fitting) if prompt else fitting
    found: Iterator[list[Likelihood]] = sorted_batches(_groups(asked, batch_size), scorer.score, _longest, batch_size)
    return chain.from_iterable(found)


def checked_length(bundle: Bundle, ids: Sequence[int]) -> Sequence[int]:
    """Return an input as it is.

    Raises:
        ModelError: It is longer than the model's positions: some models would fail, others answer wrongly.
    """
    if len(ids) > bundle.window:
        raise _too_long(bundle, "an input", len(ids), bundle.window)
    return ids


def answer_window(bundle: Bundle) -> int:
    """Return how many tokens an encoder-decoder's decoder can write; no limit where its positions are relative."""
    config: Any = bundle.model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_decoder_position_embeddings", None) or getattr(config, "max_position_embeddings", None)
    return int(limit or sys.maxsize)


def _checked_text(bundle: Bundle, text: Text) -> Text:
    if bundle.family == "decoder":
        checked_length(bundle, text.context + text.target)
        return text
    checked_length(bundle, text.context)
    limit = answer_window(bundle)
    if len(text.target) > limit:
        raise _too_long(bundle, "a target", len(text.target), limit)
    return text


def _too_long(bundle: Bundle, what: str, length: int, limit: int) -> ModelError:
    return ModelError(
        f"{what} of {length:,} tokens for {bundle.info.source}",
        expected=f"at most {limit:,}, the positions that the model has",
        fix="shorten the text, or choose a model with more positions",
    )


def pad_id(bundle: Bundle) -> int:
    """What fills rows up; the mask hides it."""
    return int(bundle.tokenizer.pad_token_id or 0)


def _groups(texts: Iterable[Text], most: int) -> Iterator[list[Text]]:
    """Texts with the same context and short targets together, at most ``most`` of them; every other text alone."""
    for _, run in groupby(texts, key=lambda text: text.context):
        group: list[Text] = []
        for text in run:
            is_short = 0 < MUCH_LONGER * len(text.target) <= len(text.context)
            if group and (len(group) == most or not is_short):
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
    """One model, asked batch after batch."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.model = bundle, bundle.model
        self.prefixes = PrefixCache(bundle)
        self.options = fast_paths.options(bundle.model)
        head: Any = self.model.get_output_embeddings()
        self.at_head, self.vocabulary = LossAtHead(head), head.weight.shape[0]
        few = torch.ones(1, 4, dtype=torch.long, device=self.model.device)
        inputs = {"input_ids": few} | ({"decoder_input_ids": few} if bundle.family == "encoder-decoder" else {})
        tried, _ = fast_paths.attempt(
            lambda: takes_loss_at_head(self.model, head, inputs | self.options, few), self.model
        )
        self.at_head.fits = bool(tried)

    @torch.inference_mode()
    def score(self, batch: Sequence[list[Text]]) -> list[list[Likelihood]]:
        """Likelihoods of groups of texts."""
        alone = [number for number, group in enumerate(batch) if len(group) == 1]
        nlls = {number: self._of_group(group) for number, group in enumerate(batch) if len(group) > 1}
        found = self._of_texts([batch[number][0] for number in alone])
        nlls |= {number: [nll] for number, nll in zip(alone, found, strict=True)}
        return [
            [Likelihood(nll, len(text.target)) for nll, text in zip(nlls[number], group, strict=True)]
            for number, group in enumerate(batch)
        ]

    def _checked(self, way: str, texts: Sequence[Text], compute: Callable[[], list[float]]) -> list[float] | None:
        """Return the losses that a fast way gives, or None where the model does not give the plain ones then."""

        def is_plain(nlls: list[float]) -> bool:
            ends = sorted({0, len(texts) - 1})
            plain = [self._run(*self._inputs([texts[place]]))[0] for place in ends]
            # A token more or less: the difference is one of nats per token, also where all of them are certain.
            tokens = torch.tensor([[len(texts[place].target)] for place in ends], dtype=torch.float64)
            fast = [nlls[place] for place in ends]
            return fast_paths.agree([tokens + torch.tensor(plain)[:, None]], [tokens + torch.tensor(fast)[:, None]])

        lengths = [len(text) for text in texts]
        return fast_paths.verified(self.model, way, (max(lengths), max(lengths) - min(lengths)), compute, is_plain)

    # ---- One context, many targets ----

    def _of_group(self, group: Sequence[Text]) -> list[float]:
        context, targets = group[0].context, [text.target for text in group]
        found = None
        if self.bundle.family == "encoder-decoder":
            found = self._checked("one pass of the encoder", group, lambda: self._after_encoder(context, targets))
        elif self.prefixes.is_usable:
            found = self._checked("one pass over a context", group, lambda: self._after_context(context, targets))
        return self._of_texts(group) if found is None else found

    def _after_encoder(self, context: list[int], targets: Sequence[list[int]]) -> list[float]:
        ids, mask = pad([context], pad_id(self.bundle), self.model.device)
        states: Any = self.model.get_encoder()(input_ids=ids, attention_mask=mask)
        states.last_hidden_state = states.last_hidden_state.expand(len(targets), -1, -1)
        source = {"attention_mask": mask.expand(len(targets), -1), "encoder_outputs": states}
        return self._run(*self._restored(targets, source))

    def _after_context(self, context: list[int], targets: Sequence[list[int]]) -> list[float]:
        model: Any = self.model
        shared = self.prefixes.length([context])
        cache = self.prefixes.placed(context[:shared], [0]) if shared else DynamicCache()
        keeps: dict[str, Any] = {**self.options, "use_cache": True, "past_key_values": cache}
        rest = torch.tensor([context[shared:]], device=model.device)
        mask = torch.ones(1, len(context), dtype=torch.long, device=model.device)
        read = model(input_ids=rest, attention_mask=mask, **keeps, **last_logits(model))
        first = F.log_softmax(read.logits[0, -1].float(), dim=-1).double()
        nlls = -first[[target[0] for target in targets]]
        if max(map(len, targets)) > 1:
            read.past_key_values.batch_repeat_interleave(len(targets))
            ids, mask = pad([target[:-1] or target for target in targets], pad_id(self.bundle), model.device)
            labels, _ = pad([target[1:] or [IGNORED] for target in targets], IGNORED, model.device)
            known = mask.new_ones(len(targets), len(context))
            keeps |= {"attention_mask": torch.cat([known, mask], dim=1), "past_key_values": read.past_key_values}
            nlls = nlls + _sums(model(input_ids=ids, **keeps).logits, labels)
        found: list[float] = nlls.tolist()
        return found

    # ---- Each text by itself ----

    def _of_texts(self, texts: Sequence[Text]) -> list[float]:
        shared = self.prefixes.length([text.context for text in texts])
        if shared:
            nlls = self._checked("a shared beginning", texts, lambda: self._after_prefix(texts, shared))
            if nlls is not None:
                return nlls
        found: list[float] = []
        for batch in fast_paths.batches(self.model, texts, self._lengths):
            for part in self._parts(batch):
                found += self._of_part(part)
        return found

    def _of_part(self, texts: Sequence[Text]) -> list[float]:
        nlls = self._checked("padding of texts", texts, lambda: self._run(*self._inputs(texts)))
        return [self._run(*self._inputs([text]))[0] for text in texts] if nlls is None else nlls

    def _lengths(self, text: Text) -> tuple[int, ...]:
        is_decoder = self.bundle.family == "decoder"
        return (len(text),) if is_decoder else (len(text.context), len(text.target))

    def _parts(self, texts: Sequence[Text]) -> Iterator[Sequence[Text]]:
        """All at once where the head gives losses; else as many as leave room for their logits."""
        width = max(map(len, texts), default=1)
        rows = len(texts) if self.at_head.fits else max(1, LOGITS_BYTES // (4 * width * self.vocabulary))
        yield from (texts[start : start + rows] for start in range(0, len(texts), max(1, rows)))

    def _inputs(self, texts: Sequence[Text]) -> tuple[dict[str, Any], Tensor]:
        """Inputs of a forward pass and labels ``(B, T)``, aligned with its logits."""
        if self.bundle.family == "decoder":
            return self._continued(texts, 0)
        ids, mask = pad([text.context for text in texts], pad_id(self.bundle), self.model.device)
        return self._restored([text.target for text in texts], {"attention_mask": mask, "input_ids": ids})

    def _restored(self, targets: Sequence[list[int]], source: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """By an encoder-decoder."""
        labels, _ = pad(targets, IGNORED, self.model.device)
        return {"decoder_input_ids": decoder_input_ids(self.model, labels), **source, **self.options}, labels

    def _continued(self, texts: Sequence[Text], shared: int) -> tuple[dict[str, Any], Tensor]:
        """By a decoder, the first ``shared`` ids left out."""
        device = self.model.device
        ids, mask = pad([(text.context + text.target)[shared:] for text in texts], pad_id(self.bundle), device)
        hidden = [[IGNORED] * (len(text.context) - shared) for text in texts]
        labels, _ = pad([ahead + text.target for ahead, text in zip(hidden, texts, strict=True)], IGNORED, device)
        inputs = {"input_ids": ids, "attention_mask": mask, **self.options}
        return inputs, F.pad(labels[:, 1:], (0, 1), value=IGNORED)

    def _after_prefix(self, texts: Sequence[Text], shared: int) -> list[float]:
        found: list[float] = []
        for part in self._parts(texts):
            inputs, labels = self._continued(part, shared)
            known = inputs["attention_mask"].new_ones(len(part), shared)
            cache = self.prefixes.placed(part[0].context[:shared], [0] * len(part))
            mask = torch.cat([known, inputs["attention_mask"]], dim=1)
            keeps = {"attention_mask": mask, "past_key_values": cache, "use_cache": True}
            found += self._run(inputs | keeps, labels)
        return found

    def _run(self, inputs: dict[str, Any], labels: Tensor) -> list[float]:
        """Σ −ln p of each row's labels ``(B, T)``, aligned with the logits."""
        run = self.at_head.run(self.model, inputs, labels, 0.0)
        sums = (
            _sums(self.model(**inputs).logits, labels) if run is None else run[1].losses.sum(dim=1, dtype=torch.float64)
        )
        found: list[float] = sums.tolist()
        return found


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Σ −ln p of each row, in double precision."""
    losses = F.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none", ignore_index=IGNORED)
    return losses.sum(dim=1, dtype=torch.float64)
