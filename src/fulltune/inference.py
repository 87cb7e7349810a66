"""What a model says: likelihoods of texts, greedy continuations, class logits and sentence vectors, in the order asked.

Every function here streams: it takes an iterable, holds a bounded number of items, sorts those by length so that
little padding is computed, and yields results in the order of the input. Decoding is greedy whatever the checkpoint's
own generation settings say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationConfig

from fulltune.model import Bundle, quiet
from fulltune.padded import pad, sorted_batches
from fulltune.prefix import PrefixCache
from fulltune.scoring import Likelihood as Likelihood
from fulltune.scoring import Text as Text
from fulltune.scoring import answer_window, checked_length, pad_id
from fulltune.scoring import likelihoods as likelihoods


@dataclass(frozen=True)
class Generated:
    """A continuation: its text without special tokens, its length in tokens, and whether it was cut by the cap.

    ``limit`` is the cap where the model's positions left fewer tokens than were asked for, else None.
    """

    text: str
    tokens: int
    capped: bool
    limit: int | None = None

    @property
    def values(self) -> dict[str, int]:
        """What a prediction records of a cap that was lowered."""
        return {} if self.limit is None else {"limit": self.limit}


def text_ids(bundle: Bundle, text: str) -> list[int]:
    """Token ids of bare text: no special tokens are added."""
    return list(bundle.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def start_ids(bundle: Bundle) -> list[int]:
    """What a decoder's text begins with: its begin-of-text token, else its end-of-text token (as GPT-2 was trained)."""
    tokenizer = bundle.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if start is None else [int(start)]


def end_ids(bundle: Bundle) -> list[int]:
    """The end-of-text token."""
    return [] if bundle.tokenizer.eos_token_id is None else [int(bundle.tokenizer.eos_token_id)]


def most_new_tokens(bundle: Bundle, prompt: int) -> int:
    """Return how many tokens can follow a prompt of ``prompt`` tokens: the last one needs no position of its own."""
    if bundle.family == "decoder":
        return bundle.window - prompt + 1
    return answer_window(bundle)


def generate(
    bundle: Bundle, prompts: Iterable[Sequence[int]], batch_size: int, max_new_tokens: int
) -> Iterator[Generated]:
    """Greedy continuation of each prompt (token ids), up to the end-of-text token or ``max_new_tokens``, or as many as
    the model's positions leave.

    Raises:
        ModelError: A prompt is longer than the model's positions.
    """
    prefixes = PrefixCache(bundle)

    def cap(prompt: Sequence[int]) -> int:
        return min(max_new_tokens, most_new_tokens(bundle, len(prompt) - len(bundle.prompt_ids)))

    def answer(batch: Sequence[Sequence[int]]) -> list[Generated]:
        # Rows of one length limit together: a long prompt does not shorten the answers to the others.
        return [
            found if limit == max_new_tokens else replace(found, limit=limit)
            for limit, rows in groupby(batch, key=cap)
            for found in _generate(bundle, prefixes, list(rows), limit)
        ]

    return sorted_batches(_prompted(bundle, prompts), answer, len, batch_size)


def sample(bundle: Bundle, count: int, batch_size: int, max_new_tokens: int, seed: int) -> Iterator[str]:
    """Texts that a decoder makes up from nothing, drawn from its own distribution (temperature 1, no cut-off).

    The same seed gives the same texts; torch's own random state is left as it is.
    """
    model: Any = bundle.model
    for start in range(0, count, batch_size):
        rows = [bundle.prompt_ids + start_ids(bundle)] * min(batch_size, count - start)
        ids, mask = pad(rows, pad_id(bundle), model.device)
        with quiet(), _decoding(bundle, max_new_tokens, sampled=True) as settings, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1_000_003 + start)
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=False)
        stops = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        for row in output[:, ids.shape[1] :].tolist():
            yield _until_stop(bundle, row, stops, max_new_tokens).text


def class_logits(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[list[float]]:
    """Logits of a classification head, one list a text."""

    @torch.inference_mode()
    def score(batch: Sequence[Sequence[int]]) -> list[list[float]]:
        ids, mask = pad(batch, pad_id(bundle), bundle.model.device)
        logits: list[list[float]] = bundle.model(input_ids=ids, attention_mask=mask).logits.float().tolist()
        return logits

    return sorted_batches(_prompted(bundle, inputs), score, len, batch_size)


def mask_log_probabilities(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[torch.Tensor]:
    """Log-probabilities over the vocabulary at each mask token: a tensor of shape (masks, vocabulary) a text."""
    mask_id = bundle.tokenizer.mask_token_id

    @torch.inference_mode()
    def score(batch: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        ids, mask = pad(batch, pad_id(bundle), bundle.model.device)
        logits = bundle.model(input_ids=ids, attention_mask=mask).logits
        return [F.log_softmax(row[tokens == mask_id].float(), dim=-1) for row, tokens in zip(logits, ids, strict=True)]

    return sorted_batches(_prompted(bundle, inputs), score, len, batch_size)


def sentence_vectors(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[torch.Tensor]:
    """Unit vectors of shape (hidden,): the mean of the last hidden states (Reimers & Gurevych 2019, mean pooling)."""
    body, own = bundle.model.base_model, len(bundle.prompt_ids)

    @torch.inference_mode()
    def embed(batch: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        ids, mask = pad(batch, pad_id(bundle), bundle.model.device)
        hidden = body(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        hidden, mask = hidden[:, own:], mask[:, own:]  # a soft prompt is no part of the text
        mean = (hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return list(F.normalize(mean, dim=-1))

    return sorted_batches(_prompted(bundle, inputs), embed, len, batch_size)


def _prompted(bundle: Bundle, inputs: Iterable[Sequence[int]]) -> Iterable[Sequence[int]]:
    """Inputs with the ids of a soft prompt before them, where the model has one.

    Raises:
        ModelError: An input is longer than the model's positions.
    """
    prompt = bundle.prompt_ids
    return (prompt + list(checked_length(bundle, ids)) for ids in inputs)


@torch.inference_mode()
def _generate(
    bundle: Bundle, prefixes: PrefixCache, batch: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Generated]:
    model: Any = bundle.model
    decoder_only = bundle.family == "decoder"
    shared = prefixes.length(batch)
    cache = prefixes.expanded(batch[0][:shared], len(batch)) if shared else None
    shared = 0 if cache is None else shared
    ids, mask = pad([row[shared:] for row in batch], pad_id(bundle), model.device, left=decoder_only)
    known: dict[str, Any] = {}
    if cache is not None:
        # What all begin with stays where its keys were computed; the padding comes after it.
        beginning = torch.tensor([list(batch[0][:shared])], device=model.device).expand(len(batch), -1)
        ids, mask = torch.cat([beginning, ids], dim=1), torch.cat([torch.ones_like(beginning), mask], dim=1)
        known = {"past_key_values": cache}
    with quiet(), _decoding(bundle, max_new_tokens) as settings:
        # Each process answers rows of its own with a whole model; under ZeRO-3 it would wait for the others.
        output = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=False, **known
        )
    new = output[:, ids.shape[1] :] if decoder_only else output[:, 1:]
    stops = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    return [_until_stop(bundle, row, stops, max_new_tokens) for row in new.tolist()]


def decode(bundle: Bundle, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """The text of token ids."""
    return str(bundle.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def _until_stop(bundle: Bundle, row: list[int], stops: Sequence[int | None], max_new_tokens: int) -> Generated:
    end = next((index for index, token in enumerate(row) if token in stops), len(row))
    text = decode(bundle, row[:end], skip_special_tokens=True)
    return Generated(text=text, tokens=end, capped=end == len(row) and end >= max_new_tokens)


@contextmanager
def _decoding(bundle: Bundle, max_new_tokens: int, *, sampled: bool = False) -> Iterator[GenerationConfig]:
    """Greedy (or plainly sampling) settings that keep only the checkpoint's special tokens.

    ``generate`` fills whatever is unset in the config it is given from the model's own (``do_sample``,
    ``repetition_penalty``, …), so the model's own is set aside for the call.
    """
    own = bundle.model.generation_config
    stops = own.eos_token_id if own.eos_token_id is not None else bundle.tokenizer.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        num_beams=1,
        bos_token_id=own.bos_token_id,
        eos_token_id=stops,
        pad_token_id=pad_id(bundle),
        decoder_start_token_id=own.decoder_start_token_id,
        forced_bos_token_id=own.forced_bos_token_id,
        **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {}),
    )
    bundle.model.generation_config = settings
    try:
        yield settings
    finally:
        bundle.model.generation_config = own
