"""What a model says: likelihoods of texts, greedy continuations, class logits and sentence vectors, in the order asked.

Every function here streams: it takes an iterable, holds a bounded number of items, sorts those by length so that
little padding is computed, and yields results in the order of the input. Decoding is greedy whatever the checkpoint's
own generation settings say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from fulltune.models import fast_paths, reconcile
from fulltune.models.bundle import Bundle, quiet
from fulltune.models.greedy import GreedyDecoding, decoding_settings, generated
from fulltune.models.likelihoods import Likelihood as Likelihood
from fulltune.models.likelihoods import Text as Text
from fulltune.models.likelihoods import answer_window, checked_length, pad_id
from fulltune.models.likelihoods import likelihoods as likelihoods
from fulltune.models.padding import pad, sorted_batches
from fulltune.models.prefix_cache import PrefixCache
from fulltune.models.reconcile import stop_ids

Result = TypeVar("Result")

#: Part of the key under which answers are cached: raise it when a model's answers change.
VERSION = 2


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
    """Return what the tokenizer puts before a text by default; nothing for GPT-2, for one."""
    return reconcile.frame(bundle.tokenizer)[0]


def opening_ids(bundle: Bundle) -> list[int]:
    """Return what a decoder reads where there is no text yet: what its tokenizer puts before one, else its
    begin-of-text or its end-of-text token.
    """
    tokenizer = bundle.tokenizer
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return start_ids(bundle) or ([] if first is None else [int(first)])


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
    """Greedy continuation of each prompt (token ids), up to the end token or ``max_new_tokens``, or as many as
    the model's positions leave.

    Raises:
        ModelError: A prompt is longer than the model's positions.
    """
    fast_paths.require_computable(bundle.model)
    prefixes = PrefixCache(bundle)

    def cap(prompt: Sequence[int]) -> int:
        return min(max_new_tokens, most_new_tokens(bundle, len(prompt) - len(bundle.prompt_ids)))

    def answer(batch: Sequence[Sequence[int]]) -> list[Generated]:
        # Rows of one length limit together: a long prompt does not shorten the answers to the others.
        found: list[Generated] = []
        for limit, rows in groupby(batch, key=cap):
            decoding = GreedyDecoding(bundle, prefixes, limit)
            answers = (_until_stop(bundle, row, decoding.stops, limit) for row in decoding.continued(list(rows)))
            found += answers if limit == max_new_tokens else (replace(one, limit=limit) for one in answers)
        return found

    return sorted_batches(_prompted(bundle, prompts), answer, len, batch_size)


def sample(bundle: Bundle, count: int, batch_size: int, max_new_tokens: int, seed: int) -> Iterator[str]:
    """Texts that a decoder makes up from nothing, drawn from its own distribution (temperature 1, no cut-off).

    The same seed gives the same texts; torch's own random state is left as it is.
    """
    model: Any = bundle.model
    stops, _ = stop_ids(model, bundle.tokenizer)
    for start in range(0, count, batch_size):
        rows = [bundle.prompt_ids + opening_ids(bundle)] * min(batch_size, count - start)
        ids, mask = pad(rows, pad_id(bundle), model.device)
        settings = decoding_settings(bundle, max_new_tokens, sampled=True)
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1_000_003 + start)
            output = generated(model, settings, {"input_ids": ids, "attention_mask": mask})
        for row in output[:, ids.shape[1] :].tolist():
            yield _until_stop(bundle, row, stops, max_new_tokens).text


def class_logits(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[list[float]]:
    """Logits of a classification head, one list a text."""

    def score(outputs: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[list[float]]:
        logits: list[list[float]] = outputs.logits.float().tolist()
        return logits

    return _read(bundle, bundle.model, inputs, batch_size, score)


def mask_log_probabilities(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[torch.Tensor]:
    """Log-probabilities over the vocabulary at each mask token: a tensor of shape (masks, vocabulary) a text."""
    mask_id = bundle.tokenizer.mask_token_id

    def score(outputs: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        masks = zip(outputs.logits, ids, strict=True)
        return [F.log_softmax(row[tokens == mask_id].float(), dim=-1) for row, tokens in masks]

    return _read(bundle, bundle.model, inputs, batch_size, score)


def sentence_vectors(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[torch.Tensor]:
    """Unit vectors of shape (hidden,): the mean of the last hidden states (Reimers & Gurevych 2019, mean pooling)."""
    own = len(bundle.prompt_ids)
    # The states of Perceiver's body belong to its latents, as many for every text, not to tokens.
    has_latents = getattr(bundle.model.config, "num_latents", None) is not None

    def embed(outputs: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        hidden = outputs.last_hidden_state.float()
        if has_latents:
            mask = mask.new_ones(hidden.shape[:2])
        hidden, mask = hidden[:, own:], mask[:, own:]  # a soft prompt is no part of the text
        mean = (hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return list(F.normalize(mean, dim=-1))

    return _read(bundle, bundle.model.base_model, inputs, batch_size, embed)


def _read(
    bundle: Bundle,
    model: Any,
    inputs: Iterable[Sequence[int]],
    batch_size: int,
    results: Callable[[Any, torch.Tensor, torch.Tensor], list[Result]],
) -> Iterator[Result]:
    """Results of one pass of ``model`` over each input, made from its outputs, the ids and the mask of a batch."""

    name = fast_paths.input_name(model)

    @torch.inference_mode()
    def read(batch: Sequence[Sequence[int]]) -> list[Result]:
        found: list[Result] = []
        for part in fast_paths.batches(bundle.model, batch, lambda row: (len(row),)):
            ids, mask = pad(part, pad_id(bundle), model.device)
            found += results(model(**{name: ids, "attention_mask": mask}), ids, mask)
        return found

    fast_paths.require_computable(bundle.model)
    return sorted_batches(_prompted(bundle, inputs), read, len, batch_size)


def _prompted(bundle: Bundle, inputs: Iterable[Sequence[int]]) -> Iterable[Sequence[int]]:
    """Inputs with the ids of a soft prompt before them, where the model has one.

    Raises:
        ModelError: An input is longer than the model's positions.
    """
    prompt = bundle.prompt_ids
    return (prompt + list(checked_length(bundle, ids)) for ids in inputs)


def decode(bundle: Bundle, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """The text of token ids."""
    return str(bundle.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def _until_stop(bundle: Bundle, row: list[int], stops: Sequence[int], max_new_tokens: int) -> Generated:
    end = next((index for index, token in enumerate(row) if token in stops), len(row))
    text = decode(bundle, row[:end], skip_special_tokens=True)
    return Generated(text=text, tokens=end, capped=end == len(row) and end >= max_new_tokens)
