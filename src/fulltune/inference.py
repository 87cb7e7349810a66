"""What a model says: likelihoods of texts, greedy continuations, class logits and sentence vectors, in the order asked.

Every function here streams: it takes an iterable, holds a bounded number of items, sorts those by length so that
little padding is computed, and yields results in the order of the input. Decoding is greedy whatever the checkpoint's
own generation settings say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from transformers import GenerationConfig

from fulltune.model import Bundle, quiet

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Batches looked at together when sorting by length.
_SORTED_BATCHES = 32

#: Largest logits tensor of one forward pass, in bytes: longer or wider batches are cut into smaller ones.
_LOGITS_BYTES = 512 * 1024 * 1024


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


@dataclass(frozen=True)
class Generated:
    """A continuation: its text without special tokens, its length in tokens, and whether it was cut by the cap."""

    text: str
    tokens: int
    capped: bool


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


def likelihoods(bundle: Bundle, texts: Iterable[Text], batch_size: int) -> Iterator[Likelihood]:
    """Negative log-likelihood in nats of each text's target."""
    vocabulary, prompt = bundle.model.get_output_embeddings().weight.shape[0], bundle.prompt_ids

    def score(batch: Sequence[Text]) -> list[Likelihood]:
        width = max(len(text) for text in batch)
        rows = max(1, _LOGITS_BYTES // (4 * width * vocabulary))
        return [result for start in range(0, len(batch), rows) for result in _nll(bundle, batch[start : start + rows])]

    asked = (Text(prompt + text.context, text.target) for text in texts) if prompt else texts
    return _sorted_batches(asked, score, len, batch_size)


def generate(
    bundle: Bundle, prompts: Iterable[Sequence[int]], batch_size: int, max_new_tokens: int
) -> Iterator[Generated]:
    """Greedy continuation of each prompt (token ids), up to the end-of-text token or ``max_new_tokens``."""

    def answer(batch: Sequence[Sequence[int]]) -> list[Generated]:
        return _generate(bundle, batch, max_new_tokens)

    return _sorted_batches(_prompted(bundle, prompts), answer, len, batch_size)


def sample(bundle: Bundle, count: int, batch_size: int, max_new_tokens: int, seed: int) -> Iterator[str]:
    """Texts that a decoder makes up from nothing, drawn from its own distribution (temperature 1, no cut-off).

    The same seed gives the same texts; torch's own random state is left as it is.
    """
    model: Any = bundle.model
    for start in range(0, count, batch_size):
        rows = [bundle.prompt_ids + start_ids(bundle)] * min(batch_size, count - start)
        ids, mask = _pad(rows, _pad_id(bundle), model.device)
        with quiet(), _decoding(bundle, max_new_tokens, sampled=True) as settings, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1_000_003 + start)
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        stops = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        for row in output[:, ids.shape[1] :].tolist():
            yield _until_stop(bundle, row, stops, max_new_tokens).text


def class_logits(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[list[float]]:
    """Logits of a classification head, one list a text."""

    @torch.inference_mode()
    def score(batch: Sequence[Sequence[int]]) -> list[list[float]]:
        ids, mask = _pad(batch, _pad_id(bundle), bundle.model.device)
        logits: list[list[float]] = bundle.model(input_ids=ids, attention_mask=mask).logits.float().tolist()
        return logits

    return _sorted_batches(_prompted(bundle, inputs), score, len, batch_size)


def mask_log_probabilities(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[torch.Tensor]:
    """Log-probabilities over the vocabulary at each mask token: a tensor of shape (masks, vocabulary) a text."""
    mask_id = bundle.tokenizer.mask_token_id

    @torch.inference_mode()
    def score(batch: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        ids, mask = _pad(batch, _pad_id(bundle), bundle.model.device)
        logits = bundle.model(input_ids=ids, attention_mask=mask).logits
        return [F.log_softmax(row[tokens == mask_id].float(), dim=-1) for row, tokens in zip(logits, ids, strict=True)]

    return _sorted_batches(_prompted(bundle, inputs), score, len, batch_size)


def sentence_vectors(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[torch.Tensor]:
    """Unit vectors of shape (hidden,): the mean of the last hidden states (Reimers & Gurevych 2019, mean pooling)."""
    body, own = bundle.model.base_model, len(bundle.prompt_ids)

    @torch.inference_mode()
    def embed(batch: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        ids, mask = _pad(batch, _pad_id(bundle), bundle.model.device)
        hidden = body(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        hidden, mask = hidden[:, own:], mask[:, own:]  # a soft prompt is no part of the text
        mean = (hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return list(F.normalize(mean, dim=-1))

    return _sorted_batches(_prompted(bundle, inputs), embed, len, batch_size)


def _prompted(bundle: Bundle, inputs: Iterable[Sequence[int]]) -> Iterable[Sequence[int]]:
    """Inputs with the ids of a soft prompt before them, where the model has one."""
    prompt = bundle.prompt_ids
    return (prompt + list(ids) for ids in inputs) if prompt else inputs


def _sorted_batches(
    items: Iterable[Item],
    apply: Callable[[Sequence[Item]], list[Result]],
    length: Callable[[Item], int],
    batch_size: int,
) -> Iterator[Result]:
    """Apply a batch function to items sorted by length within a bounded stretch; yield in the order of the input."""
    iterator = iter(items)
    while stretch := list(islice(iterator, batch_size * _SORTED_BATCHES)):
        order = sorted(range(len(stretch)), key=lambda index: length(stretch[index]), reverse=True)
        results: dict[int, Result] = {}
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            results.update(zip(indices, apply([stretch[index] for index in indices]), strict=True))
        yield from (results[index] for index in range(len(stretch)))


@torch.inference_mode()
def _nll(bundle: Bundle, batch: Sequence[Text]) -> list[Likelihood]:
    # torch types every attribute of a module as a tensor, so the library's own methods must be called untyped.
    model: Any = bundle.model
    device = model.device
    if bundle.family == "encoder-decoder":
        ids, mask = _pad([text.context for text in batch], _pad_id(bundle), device)
        labels, _ = _pad([text.target for text in batch], -100, device)
        start = model.prepare_decoder_input_ids_from_labels(labels)
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits
    else:
        ids, mask = _pad([text.context + text.target for text in batch], _pad_id(bundle), device)
        labels, _ = _pad([[-100] * len(text.context) + text.target for text in batch], -100, device)
        labels = labels[:, 1:]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none", ignore_index=-100)
    sums = losses.sum(dim=1, dtype=torch.float64).tolist()
    return [Likelihood(nll, len(text.target)) for nll, text in zip(sums, batch, strict=True)]


@torch.inference_mode()
def _generate(bundle: Bundle, batch: Sequence[Sequence[int]], max_new_tokens: int) -> list[Generated]:
    model: Any = bundle.model
    decoder_only = bundle.family == "decoder"
    ids, mask = _pad(batch, _pad_id(bundle), bundle.model.device, left=decoder_only)
    with quiet(), _decoding(bundle, max_new_tokens) as settings:
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
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
        pad_token_id=_pad_id(bundle),
        decoder_start_token_id=own.decoder_start_token_id,
        forced_bos_token_id=own.forced_bos_token_id,
        **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {}),
    )
    bundle.model.generation_config = settings
    try:
        yield settings
    finally:
        bundle.model.generation_config = own


def _pad_id(bundle: Bundle) -> int:
    return int(bundle.tokenizer.pad_token_id or 0)


def _pad(
    rows: Sequence[Sequence[int]], value: int, device: torch.device, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as (B, T) with an attention mask made from their lengths, never from the padding id."""
    width = max(1, *(len(row) for row in rows)) if len(rows) > 1 else max(1, len(rows[0]))
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return ids.to(device), mask.to(device)
