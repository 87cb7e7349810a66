"""Decode greedily: each token is the most likely one by the plain forward pass over all preceding tokens.

Batches, padding, shared prefixes and a cache make that faster. Each is used for a model only if the first batch of its
size has the same result as plain passes over single rows (:mod:`fulltune.models.fast_paths`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from fulltune.models import fast_paths
from fulltune.models.bundle import Bundle, quiet
from fulltune.models.cache_names import CACHE
from fulltune.models.likelihoods import pad_id
from fulltune.models.modes import in_mode
from fulltune.models.padding import pad
from fulltune.models.prefix_cache import PrefixCache
from fulltune.models.reconcile import own_limit, stop_ids
from fulltune.models.teacher_forcing import start_id

_log = logging.getLogger(__name__)

#: Number of most likely tokens whose logits are compared at each step.
COMPARED = 8

#: Largest expected change of a logit by a batch, relative to the largest logit: if two tokens are closer, their row is
#: decoded alone, so that its answer does not depend on the other rows.
BATCH_ERROR = 2e-5

#: Largest accepted relative difference of distances between logits: 30 layers in float32 cause 3e-5.
TOLERANCE = 3e-4

#: Name of the fast path that keeps the keys and values of a row.
_CACHE = "a cache in generation"

#: Length of the probe text of :func:`cache_is_neutral`, and number of its new tokens.
_PROBE = 12

Rows = Sequence[Sequence[int]]

#: Called before each new token of a row with the row and those new tokens that are certain; it may raise an exception
#: to end decoding.
Watch = Callable[[Sequence[int], Sequence[int]], None]


def decoding_settings(
    bundle: Bundle, max_new_tokens: int, *, temperature: float = 0.0, top_p: float = 1.0
) -> GenerationConfig:
    """Return settings for greedy decoding (temperature 0), or sampling, with the special tokens of the checkpoint."""
    own = bundle.model.generation_config
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        num_beams=1,
        bos_token_id=own.bos_token_id,
        eos_token_id=stop_ids(bundle.model, bundle.tokenizer)[0] or None,
        pad_token_id=pad_id(bundle),
        decoder_start_token_id=own.decoder_start_token_id,
        forced_bos_token_id=own.forced_bos_token_id,
        **({"temperature": temperature, "top_k": 0, "top_p": top_p} if temperature > 0 else {}),
    )


def generated(model: Any, settings: GenerationConfig, inputs: dict[str, Any], **options: Any) -> Tensor:
    """Return the output of ``generate`` for a batch with exactly these settings.

    ``generate`` fills unset settings from the model's own (``do_sample``, ``repetition_penalty``, …), so the model's
    own settings are replaced during the call.
    """
    own = model.generation_config
    router = {"output_router_logits": False} if "output_router_logits" in fast_paths.options(model) else {}
    model.generation_config = settings
    try:
        # Each process generates for its own rows with a complete model; synchronization under ZeRO-3 would deadlock.
        output: Tensor = model.generate(**inputs, **router, generation_config=settings, synced_gpus=False, **options)
    finally:
        model.generation_config = own
    return output


@dataclass(frozen=True)
class _Output:
    """Generated tokens of a batch.

    Attributes:
        rows: New tokens of each row.
        steps: For each step, the most likely tokens and their logits, each ``(compared rows, COMPARED)``.
        is_close: For each step, whether a batch could have changed the most likely token: ``(steps, B)``.
    """

    rows: list[list[int]]
    steps: list[tuple[Tensor, Tensor]]
    is_close: Tensor


class _TopLogits(LogitsProcessor):
    """Logits processor that records the most likely tokens per step.

    ``steps`` has the tokens and logits of the compared rows, each ``(rows, COMPARED)``; ``is_close`` is True for rows
    ``(B,)`` whose two best logits are so close that the batch could have changed their order.
    """

    def __init__(self, rows: Sequence[int], follow: Callable[[Tensor, Sequence[Tensor]], None] | None = None) -> None:
        self.rows = list(rows)
        self.follow = follow
        self.steps = list[tuple[Tensor, Tensor]]()
        self.is_close = list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.follow is not None:
            self.follow(input_ids, self.is_close)
        best = scores.float().topk(min(2, scores.shape[-1])).values
        self.is_close.append(best[:, 0] - best[:, -1] <= BATCH_ERROR * (1 + best[:, 0].abs()))
        values, tokens = scores[self.rows].float().topk(min(COMPARED, scores.shape[-1]))
        self.steps.append((tokens, values))
        return scores


class GreedyDecoding:
    """Greedy decoding of batches with one model.

    Args:
        bundle: A decoder or an encoder-decoder.
        prefixes: Cache of prefixes that rows share.
        max_new_tokens: Maximum number of new tokens.
        watch: Receives the tokens as they are generated.
    """

    def __init__(self, bundle: Bundle, prefixes: PrefixCache, max_new_tokens: int, watch: Watch | None = None) -> None:
        self.bundle = bundle
        self.watch = watch
        self.max_new_tokens = max_new_tokens
        self.model: Any = bundle.model
        self.is_decoder = bundle.family == "decoder"
        self.stops: Sequence[int] = stop_ids(bundle.model, bundle.tokenizer)[0]
        self.settings = decoding_settings(bundle, max_new_tokens)
        self.prefixes = prefixes

    @torch.inference_mode()
    def continued(self, batch: Rows) -> list[list[int]]:
        """Return the new tokens of each row; tokens after an end token are to be ignored."""
        by_side = [list(rows) for _, rows in groupby(batch, key=self._sides)]
        if len(by_side) > 1:
            return [row for part in by_side for row in self.continued(part)]
        before, after = self._sides(batch[0])
        if before != after:
            return [self._decode_across(row) for row in batch]
        for path, compute in self._paths(batch):
            output = self._checked(path, batch, compute)
            if output is not None:
                return [self._settled(row, place, batch, output) for place, row in enumerate(output.rows)]
        if len(batch) == 1:
            return [self._decode_plainly(batch[0])]
        by_length = [list(rows) for _, rows in groupby(batch, key=len)]
        parts = by_length if len(by_length) > 1 else [[row] for row in batch]
        return [row for part in parts for row in self.continued(part)]

    def _sides(self, row: Sequence[int]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Return the sides of the model's changes of positions on which the first and the last step can be."""
        steps = self.max_new_tokens - 1 if self.is_decoder else 0
        return fast_paths.side(self.model, len(row)), fast_paths.side(self.model, len(row) + steps)

    def _decode_across(self, row: Sequence[int]) -> list[int]:
        """Return the new tokens of a row whose positions may change: keys and values are kept on one side only."""
        steps = range(1, self.max_new_tokens)
        count = next(step for step in steps if not fast_paths.on_one_side(self.model, (len(row), len(row) + step)))
        new = self._up_to_end(self._with_cap(count, self.watch).continued([row])[0])
        if new[-1] in self.stops:
            return new
        watch = self.watch
        later = None if watch is None else lambda _, added: watch(row, [*new, *added])
        return new + self._with_cap(self.max_new_tokens - count, later).continued([[*row, *new]])[0]

    def _with_cap(self, max_new_tokens: int, watch: Watch | None) -> GreedyDecoding:
        return GreedyDecoding(self.bundle, self.prefixes, max_new_tokens, watch)

    def _settled(self, row: list[int], place: int, batch: Rows, output: _Output) -> list[int]:
        """Return the new tokens of a row of a batch, decoded alone if the batch could have changed them."""
        used = output.is_close[: len(self._up_to_end(row)), place]
        if len(batch) == 1 or not used.any():
            return row
        return self.continued([batch[place]])[0]

    def _paths(self, batch: Rows) -> list[tuple[str, Callable[[bool], _Output]]]:
        """Return the fast paths for a batch, the fastest first; they take whether they were checked before."""
        paths = list[tuple[str, Callable[[bool], _Output]]]()
        # A row alone is computed in one way, whatever came before it.
        shared = self.prefixes.length(batch) if len(batch) > 1 else 0
        if shared and fast_paths.on_one_side(self.model, (shared, len(batch[0]))):
            paths.append(
                ("a shared beginning in generation", lambda is_checked: self._generated(batch, shared, is_checked))
            )
        is_ragged = len({len(row) for row in batch}) > 1
        batched = "padding in generation" if is_ragged else "a batch in generation"
        name = batched if len(batch) > 1 else _CACHE
        paths.append((name, lambda is_checked: self._generated(batch, 0, is_checked)))
        return paths

    def _checked(self, path: str, batch: Rows, compute: Callable[[bool], _Output]) -> _Output | None:
        """Return the output of a fast path; None if it differs from plain decoding."""
        lengths = [len(row) for row in batch]
        cap = self.max_new_tokens
        sizes = (max(lengths) + cap - 1, max(lengths) - min(lengths)) if self.is_decoder else (max(lengths), cap)
        is_checked = fast_paths.has_passed(self.model, path, sizes)
        return fast_paths.verified(
            self.model, path, sizes, lambda: compute(is_checked), lambda output: self._is_plain(batch, output)
        )

    def _generated(self, batch: Rows, shared: int, is_checked: bool) -> _Output:
        """Decode with ``generate``; the first ``shared`` ids of all rows come from the prefix cache."""
        ids, mask = pad(batch, pad_id(self.bundle), self.model.device, left=self.is_decoder)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if shared:
            padding = [ids.shape[1] - len(row) for row in batch]
            inputs[CACHE] = self.prefixes.placed(batch[0][:shared], padding)
        top_logits = _TopLogits(_compared_rows(batch), self._follower(batch, ids.shape[1], is_checked))
        with quiet():
            output = generated(self.model, self.settings, inputs, logits_processor=LogitsProcessorList([top_logits]))
        new = output[:, ids.shape[1] if self.is_decoder else 1 :]
        return _Output(new.tolist(), top_logits.steps, torch.stack(top_logits.is_close).cpu())

    def _follower(self, batch: Rows, width: int, is_checked: bool) -> Callable[[Tensor, Sequence[Tensor]], None] | None:
        """Return a function that passes the new tokens of each row to the watch, as far as they are certain.

        They are if the path was checked before, and up to the first token that another batch could change.
        """
        if self.watch is None:
            return None
        watch, start = self.watch, width if self.is_decoder else 1
        certain: list[list[int]] = [[] for _ in batch]
        doubtful = [not is_checked] * len(batch)

        def follow(ids: Tensor, is_close: Sequence[Tensor]) -> None:
            if is_close and len(batch) > 1:
                doubtful[:] = [old or new for old, new in zip(doubtful, is_close[-1].tolist(), strict=True)]
            for place, new in enumerate(ids[:, start:].tolist()):
                certain[place] = certain[place] if doubtful[place] else new
                watch(batch[place], certain[place])

        return follow

    @torch.inference_mode()
    def cache_agrees(self, row: Sequence[int]) -> bool:
        """Return True if new tokens with a cache are those of plain passes over the row, also after an end token."""
        self.stops = ()
        self.settings.eos_token_id = None
        compute = partial(self._generated, [row], 0)
        return self._checked(_CACHE, [row], compute) is not None

    # ---- Plain decoding ----

    def _is_plain(self, batch: Rows, output: _Output) -> bool:
        """Compare the longest and the shortest row with one plain pass over each row and its new tokens."""
        return all(self._row_is_plain(batch, output, *pair) for pair in enumerate(_compared_rows(batch)))

    def _row_is_plain(self, batch: Rows, output: _Output, number: int, row: int) -> bool:
        """Compare the recorded logits of compared row ``number``, which is row ``row`` of the batch."""
        new = self._up_to_end(output.rows[row])
        first = 0 if self.settings.forced_bos_token_id is None else 1  # a forced token does not depend on logits
        steps = range(first, len(new))
        if not steps:
            return True
        logits = self._logits(batch[row], new[:-1], len(new))
        tokens = torch.stack([output.steps[step][0][number] for step in steps])
        fast = torch.stack([output.steps[step][1][number] for step in steps])
        plain = logits[first:].gather(1, tokens)
        return fast_paths.agree([plain - plain[:, :1]], [fast - fast[:, :1]], TOLERANCE)

    def _up_to_end(self, row: list[int]) -> list[int]:
        """Return the new tokens up to and including the end token."""
        end = next((index for index, token in enumerate(row) if token in self.stops), len(row))
        return row[: end + 1]

    def _decode_plainly(self, prompt: Sequence[int]) -> list[int]:
        """Return the new tokens of one row, with a full forward pass per token."""
        forced = self.settings.forced_bos_token_id
        new = list[int]()
        while len(new) < self.max_new_tokens and not (new and new[-1] in self.stops):
            is_forced = not new and forced is not None
            new.append(int(forced) if is_forced else int(self._logits(prompt, new, 1)[-1].argmax()))
            if self.watch is not None:
                self.watch(prompt, new)
        return new

    def _logits(self, prompt: Sequence[int], new: Sequence[int], count: int) -> Tensor:
        """Return the logits ``(count, V)`` of the last positions, by one forward pass over a single row."""
        inputs: dict[str, Any] = fast_paths.options(self.model)
        ids = list(prompt) + list(new) if self.is_decoder else list(prompt)
        inputs["input_ids"], inputs["attention_mask"] = pad([ids], 0, self.model.device)
        if not self.is_decoder:
            own = self.settings.decoder_start_token_id
            start = start_id(self.model) if own is None else int(own)
            inputs["decoder_input_ids"] = torch.tensor([[start, *new]], device=self.model.device)
        elif "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            inputs["logits_to_keep"] = count
        logits: Tensor = self.model(**inputs).logits[0, -count:].float()
        return logits


def cache_is_neutral(bundle: Bundle) -> bool:
    """Return True if tokens generated with a cache are those of plain passes, on a probe text."""
    limit = own_limit(bundle.model) or 2 * _PROBE
    size = max(1, min(_PROBE, limit // 2))
    [row] = fast_paths.probes(bundle.model, [size])
    with in_mode(bundle.model, training=False):
        return GreedyDecoding(bundle, PrefixCache(bundle), size).cache_agrees(row)


def _compared_rows(batch: Rows) -> list[int]:
    """Return the indices of the longest and the shortest row of a batch that is sorted by length."""
    return sorted({0, len(batch) - 1})
