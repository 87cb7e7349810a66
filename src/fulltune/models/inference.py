"""Run inference: likelihoods of texts, greedy continuations, class logits and sentence vectors.

Every function streams: it takes an iterable, buffers a bounded number of items, sorts them by length to reduce padding,
and yields results in input order. Decoding is greedy, or by chance where asked, never by the checkpoint's settings.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from fulltune.config import SamplingConfig
from fulltune.models import fast_paths
from fulltune.models.bundle import Bundle, quiet
from fulltune.models.greedy import GreedyDecoding, Watch, decoding_settings, generated
from fulltune.models.likelihoods import Likelihood as Likelihood
from fulltune.models.likelihoods import checked_length, pad_id
from fulltune.models.likelihoods import likelihoods as likelihoods
from fulltune.models.padding import pad, sorted_batches
from fulltune.models.prefix_cache import PrefixCache
from fulltune.models.reconcile import stop_ids
from fulltune.models.token_ids import Text as Text
from fulltune.models.token_ids import decode, most_new_tokens, opening_ids

Result = TypeVar("Result")

#: Part of the key of cached outputs: increase it when outputs of a model change.
VERSION = 2


@dataclass(frozen=True)
class Generated:
    """A generated continuation.

    Attributes:
        text: Text without special tokens.
        tokens: Number of tokens.
        capped: True if it was truncated at the maximum number of new tokens.
        limit: Maximum number of new tokens if the model's positions reduced it, else None.
    """

    text: str
    tokens: int
    capped: bool
    limit: int | None = None

    @property
    def values(self) -> dict[str, int]:
        """Values of a prediction that record a reduced maximum of new tokens."""
        return {} if self.limit is None else {"limit": self.limit}


def generate(
    bundle: Bundle,
    prompts: Iterable[Sequence[int]],
    batch_size: int,
    max_new_tokens: int,
    watch: Watch | None = None,
) -> Iterator[Generated]:
    """Yield the greedy continuation of each prompt.

    Args:
        bundle: A decoder or an encoder-decoder.
        prompts: Token ids.
        batch_size: Prompts per batch.
        max_new_tokens: Maximum number of new tokens; less if the model has fewer positions left.
        watch: Called with a prompt and its new tokens, as far as they are certain, before each further token.

    Raises:
        ModelError: A prompt is longer than the model's positions.
    """
    fast_paths.require_computable(bundle.model)
    prefixes = PrefixCache(bundle)

    def watch_row(row: Sequence[int], new: Sequence[int]) -> None:
        if watch is not None:
            watch(row[len(bundle.prompt_ids) :], new)

    def cap(prompt: Sequence[int]) -> int:
        return min(max_new_tokens, most_new_tokens(bundle, len(prompt) - len(bundle.prompt_ids)))

    def generate_batch(batch: Sequence[Sequence[int]]) -> list[Generated]:
        # Rows with the same limit form a batch, so that a long prompt does not shorten other answers.
        results: list[Generated] = []
        for limit, rows in groupby(batch, key=cap):
            decoding = GreedyDecoding(bundle, prefixes, limit, watch_row if watch else None)
            for row in decoding.continued(list(rows)):
                result = _until_stop(bundle, row, decoding.stops, limit)
                results.append(result if limit == max_new_tokens else replace(result, limit=limit))
        return results

    return sorted_batches(_prompted(bundle, prompts), generate_batch, len, batch_size)


def text_of(bundle: Bundle, tokens: Sequence[int]) -> str:
    """Return the text of new tokens up to the first stop token, without special tokens."""
    return _until_stop(bundle, list(tokens), stop_ids(bundle.model, bundle.tokenizer)[0], len(tokens) + 1).text


def sample(bundle: Bundle, count: int, batch_size: int, max_new_tokens: int, seed: int) -> Iterator[str]:
    """Yield texts sampled from a decoder without a prompt (temperature 1, no top-k or top-p).

    The same seed gives the same texts; torch's random state is not changed.
    """
    model: Any = bundle.model
    stops, _ = stop_ids(model, bundle.tokenizer)
    for start in range(0, count, batch_size):
        rows = [bundle.prompt_ids + opening_ids(bundle)] * min(batch_size, count - start)
        ids, mask = pad(rows, pad_id(bundle), model.device)
        settings = decoding_settings(bundle, max_new_tokens, temperature=1.0)
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1_000_003 + start)
            output = generated(model, settings, {"input_ids": ids, "attention_mask": mask})
        for row in output[:, ids.shape[1] :].tolist():
            yield _until_stop(bundle, row, stops, max_new_tokens).text


@torch.inference_mode()
def drawn(
    bundle: Bundle, prompts: Iterable[Sequence[int]], max_new_tokens: int, settings: SamplingConfig
) -> Iterator[Generated]:
    """Yield a continuation of each prompt whose tokens are drawn by their probability.

    Each prompt is continued alone, from the seed and its own tokens, so that no other row changes its continuation;
    torch's random state is not changed.

    Args:
        bundle: A decoder.
        prompts: Token ids.
        max_new_tokens: Maximum number of new tokens; less if the model has fewer positions left.
        settings: Temperature, nucleus and seed.

    Raises:
        ModelError: A prompt is longer than the model's positions.
    """
    model: Any = bundle.model
    fast_paths.require_computable(model)
    stops, _ = stop_ids(model, bundle.tokenizer)
    for row in _prompted(bundle, prompts):
        limit = min(max_new_tokens, most_new_tokens(bundle, len(row) - len(bundle.prompt_ids)))
        ids, mask = pad([row], pad_id(bundle), model.device)
        decoding = decoding_settings(bundle, limit, temperature=settings.temperature, top_p=settings.top_p)
        devices = [model.device] if model.device.type == "cuda" else []
        with quiet(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(_seed_of(settings.seed, row))
            output = generated(model, decoding, {"input_ids": ids, "attention_mask": mask})
        result = _until_stop(bundle, output[0, ids.shape[1] :].tolist(), stops, limit)
        yield result if limit == max_new_tokens else replace(result, limit=limit)


def _seed_of(seed: int, ids: Sequence[int]) -> int:
    digest = hashlib.sha256(f"{seed} {list(ids)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def class_logits(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[list[float]]:
    """Yield the logits of a classification head, one list per text."""

    def score(outputs: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[list[float]]:
        logits: list[list[float]] = outputs.logits.float().tolist()
        return logits

    return _read(bundle, bundle.model, inputs, batch_size, score)


def head_inputs(bundle: Bundle, layer: str, inputs: Iterable[Sequence[int]], batch_size: int) -> list[list[float]]:
    """Return what the output layer of a classification head reads of each text, ``(texts, features)``.

    The model itself pools: with an output layer that changes nothing, its logits are the features.

    Args:
        bundle: A model with a classification head; it is changed during the call only.
        layer: Name of the output layer.
        inputs: Token ids.
        batch_size: Inputs per batch.
    """
    model = bundle.model
    output = model.get_submodule(layer)
    model.set_submodule(layer, torch.nn.Identity())
    try:
        return list(class_logits(bundle, inputs, batch_size))
    finally:
        model.set_submodule(layer, output)


def input_rms(bundle: Bundle, layer: torch.nn.Module, inputs: Iterable[Sequence[int]], batch_size: int) -> float:
    """Return the root mean square of what a layer of a classification head reads of some texts."""
    squares: list[float] = []
    handle = layer.register_forward_pre_hook(lambda _, read: squares.append(float(read[0].float().square().mean())))
    try:
        for _ in class_logits(bundle, inputs, batch_size):
            pass
    finally:
        handle.remove()
    return math.sqrt(sum(squares) / max(1, len(squares)))


def mask_log_probabilities(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the log-probabilities over the vocabulary at the mask tokens of each text, ``(masks, vocabulary)``.

    The output layer computes the mask tokens only, if this does not change the results.
    """
    model = bundle.model
    name = fast_paths.input_name(model)
    mask_id = bundle.tokenizer.mask_token_id

    def plain(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model(**{name: ids, "attention_mask": mask}).logits[ids == mask_id]  # type: ignore[no-any-return]

    def at_masks(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with _only_rows(model.get_output_embeddings(), ids == mask_id):
            return model(**{name: ids, "attention_mask": mask}).logits  # type: ignore[no-any-return]

    def logits(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        def is_plain(fast: torch.Tensor) -> bool:
            return fast_paths.agree([plain(ids, mask)], [fast], fast_paths.tolerance_of(model))

        at_once = fast_paths.verified(
            model, "an output layer at masks only", [ids.shape[1]], lambda: at_masks(ids, mask), is_plain
        )
        return plain(ids, mask) if at_once is None else at_once

    @torch.inference_mode()
    def run(batch: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        results: list[torch.Tensor] = []
        for part in fast_paths.batches(model, batch, lambda row: (len(row),)):
            ids, mask = pad(part, pad_id(bundle), model.device)
            masks = (ids == mask_id).sum(dim=1).tolist()
            results += F.log_softmax(logits(ids, mask).float(), dim=-1).split(masks)  # type: ignore[no-untyped-call]
        return results

    fast_paths.require_computable(model)
    return sorted_batches(_prompted(bundle, inputs), run, len, batch_size)


@contextmanager
def _only_rows(layer: Any, chosen: torch.Tensor) -> Iterator[None]:
    """Let a linear layer compute only the chosen positions ``(B, T)`` of its input within the block."""

    def choose(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        return (hidden[chosen], *rest)

    handle = layer.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def sentence_vectors(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[torch.Tensor]:
    """Yield unit vectors ``(hidden,)``: the mean of the last hidden states (Reimers & Gurevych 2019, mean pooling)."""
    return (F.normalize(mean, dim=-1) for mean in mean_states(bundle, inputs, batch_size))


def mean_states(bundle: Bundle, inputs: Iterable[Sequence[int]], batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the mean of the last hidden states of each text, ``(hidden,)``; of an encoder-decoder, its encoder's."""
    prompt_length = len(bundle.prompt_ids)
    model: Any = bundle.model
    # Hidden states of Perceiver's body belong to a fixed number of latents, not to tokens.
    has_latents = getattr(model.config, "num_latents", None) is not None

    def embed(outputs: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        hidden = outputs.last_hidden_state.float()
        if has_latents:
            mask = mask.new_ones(hidden.shape[:2])
        # A soft prompt is not part of the text.
        hidden = hidden[:, prompt_length:]
        mask = mask[:, prompt_length:]
        return list((hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True))

    body = model.get_encoder() if bundle.family == "encoder-decoder" else model.base_model
    return _read(bundle, body, inputs, batch_size, embed)


def _read(
    bundle: Bundle,
    model: Any,
    inputs: Iterable[Sequence[int]],
    batch_size: int,
    results: Callable[[Any, torch.Tensor, torch.Tensor], list[Result]],
) -> Iterator[Result]:
    """Yield one result per input from a single forward pass.

    Args:
        bundle: Bundle of the model.
        model: The model, or its body.
        inputs: Token ids.
        batch_size: Inputs per batch.
        results: Returns the results of a batch from its outputs, ids and mask.
    """
    name = fast_paths.input_name(model)

    @torch.inference_mode()
    def run(batch: Sequence[Sequence[int]]) -> list[Result]:
        batch_results: list[Result] = []
        for part in fast_paths.batches(bundle.model, batch, lambda row: (len(row),)):
            ids, mask = pad(part, pad_id(bundle), model.device)
            batch_results += results(model(**{name: ids, "attention_mask": mask}), ids, mask)
        return batch_results

    fast_paths.require_computable(bundle.model)
    return sorted_batches(_prompted(bundle, inputs), run, len, batch_size)


def _prompted(bundle: Bundle, inputs: Iterable[Sequence[int]]) -> Iterable[Sequence[int]]:
    """Return the inputs with the ids of a soft prompt prepended, if the model has one.

    Raises:
        ModelError: An input is longer than the model's positions.
    """
    prompt = bundle.prompt_ids
    return (prompt + list(checked_length(bundle, ids)) for ids in inputs)


def _until_stop(bundle: Bundle, row: list[int], stops: Sequence[int], max_new_tokens: int) -> Generated:
    """Return the continuation up to the first stop token."""
    end = next((index for index, token in enumerate(row) if token in stops), len(row))
    text = decode(bundle, row[:end], skip_special_tokens=True)
    return Generated(text=text, tokens=end, capped=end == len(row) and end >= max_new_tokens)
