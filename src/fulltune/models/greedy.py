"""Greedy decoding: each token is the likeliest one by the plain forward pass over everything before it.

Batches, padding, a shared beginning and a cache make that faster. Each is used for a model only where the first batch
of its size came out as by plain passes over single rows (:mod:`fulltune.models.fast_paths`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from fulltune.models import fast_paths
from fulltune.models.bundle import Bundle, quiet
from fulltune.models.likelihoods import pad_id
from fulltune.models.padding import pad
from fulltune.models.prefix_cache import PrefixCache
from fulltune.models.reconcile import stop_ids
from fulltune.models.teacher_forcing import start_id

_log = logging.getLogger(__name__)

#: Logits of this many likeliest tokens are compared at each step.
COMPARED = 8

#: Largest relative difference of their distances that counts as none: 30 layers in float32 leave 3e-5.
TOLERANCE = 3e-4

Rows = Sequence[Sequence[int]]


def decoding_settings(bundle: Bundle, max_new_tokens: int, *, sampled: bool = False) -> GenerationConfig:
    """Return greedy (or plainly sampling) settings that keep only the checkpoint's special tokens."""
    own = bundle.model.generation_config
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        num_beams=1,
        bos_token_id=own.bos_token_id,
        eos_token_id=stop_ids(bundle.model, bundle.tokenizer)[0] or None,
        pad_token_id=pad_id(bundle),
        decoder_start_token_id=own.decoder_start_token_id,
        forced_bos_token_id=own.forced_bos_token_id,
        **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {}),
    )


def generated(model: Any, settings: GenerationConfig, inputs: dict[str, Any], **options: Any) -> Tensor:
    """Return what ``generate`` makes of a batch under these settings alone.

    It fills whatever is unset in the settings from the model's own (``do_sample``, ``repetition_penalty``, …), so the
    model's own are set aside for the call.
    """
    own, router = model.generation_config, {"output_router_logits": False}
    asked = {name: value for name, value in router.items() if name in fast_paths.options(model)}
    model.generation_config = settings
    try:
        # Each process answers rows of its own with a whole model; under ZeRO-3 it would wait for the others.
        output: Tensor = model.generate(**inputs, **asked, generation_config=settings, synced_gpus=False, **options)
    finally:
        model.generation_config = own
    return output


@dataclass(frozen=True)
class _Output:
    """New tokens of each row ``(B, N)``, and the likeliest tokens of the rows compared with their logits, by step."""

    rows: list[list[int]]
    steps: list[tuple[Tensor, Tensor]]


class _Likeliest(LogitsProcessor):
    """Keeps the likeliest tokens and their logits, each ``(rows, COMPARED)``, at every step; changes nothing."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows, self.steps = list(rows), list[tuple[Tensor, Tensor]]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        values, tokens = scores[self.rows].float().topk(min(COMPARED, scores.shape[-1]))
        self.steps.append((tokens, values))
        return scores


class GreedyDecoding:
    """Greedy answers of one model, batch after batch.

    Args:
        bundle: A decoder or an encoder-decoder.
        prefixes: Beginnings that its rows may share.
        max_new_tokens: Longest answer.
    """

    def __init__(self, bundle: Bundle, prefixes: PrefixCache, max_new_tokens: int) -> None:
        self.bundle, self.max_new_tokens = bundle, max_new_tokens
        self.model: Any = bundle.model
        self.is_decoder = bundle.family == "decoder"
        self.stops, _ = stop_ids(bundle.model, bundle.tokenizer)
        self.settings = decoding_settings(bundle, max_new_tokens)
        self.prefixes = prefixes

    @torch.inference_mode()
    def continued(self, batch: Rows) -> list[list[int]]:
        """Return the new tokens of each row; what comes after an end token does not count."""
        for way, compute in self._ways(batch):
            output = self._checked(way, batch, compute)
            if output is not None:
                return output.rows
        if len(batch) == 1:
            return [self._plainly(batch[0])]
        by_length = [list(rows) for _, rows in groupby(batch, key=len)]
        parts = by_length if len(by_length) > 1 else [[row] for row in batch]
        return [row for part in parts for row in self.continued(part)]

    def _ways(self, batch: Rows) -> list[tuple[str, Callable[[], _Output]]]:
        """Return fast ways to answer a batch, the fastest first."""
        shared, is_ragged = self.prefixes.length(batch), len({len(row) for row in batch}) > 1
        whole = "padding in generation" if is_ragged else "a batch in generation"
        way = whole if len(batch) > 1 else "a cache in generation"
        ways: list[tuple[str, Callable[[], _Output]]] = [(way, lambda: self._generated(batch, 0))]
        return [("a shared beginning in generation", lambda: self._generated(batch, shared)), *ways] if shared else ways

    def _checked(self, way: str, batch: Rows, compute: Callable[[], _Output]) -> _Output | None:
        lengths, cap = [len(row) for row in batch], self.max_new_tokens
        sizes = (max(lengths) + cap, max(lengths) - min(lengths)) if self.is_decoder else (max(lengths), cap)
        return fast_paths.verified(self.model, way, sizes, compute, lambda output: self._is_plain(batch, output))

    def _generated(self, batch: Rows, shared: int) -> _Output:
        """By ``generate``, the first ``shared`` ids of all rows read once."""
        ids, mask = pad(batch, pad_id(self.bundle), self.model.device, left=self.is_decoder)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if shared:
            padding = [ids.shape[1] - len(row) for row in batch]
            inputs["past_key_values"] = self.prefixes.placed(batch[0][:shared], padding)
        likeliest = _Likeliest(_ends(batch))
        with quiet():
            output = generated(self.model, self.settings, inputs, logits_processor=LogitsProcessorList([likeliest]))
        new = output[:, ids.shape[1] if self.is_decoder else 1 :]
        return _Output(new.tolist(), likeliest.steps)

    # ---- Plainly ----

    def _is_plain(self, batch: Rows, output: _Output) -> bool:
        """Compare the longest and the shortest row with one plain pass over each and its answer."""
        return all(self._row_is_plain(batch, output, number, place) for number, place in enumerate(_ends(batch)))

    def _row_is_plain(self, batch: Rows, output: _Output, number: int, place: int) -> bool:
        new = self._counted(output.rows[place])
        first = 0 if self.settings.forced_bos_token_id is None else 1  # that step was not decided by logits
        steps = range(first, len(new))
        if not steps:
            return True
        logits = self._logits(batch[place], new[:-1], len(new))
        tokens = torch.stack([output.steps[step][0][number] for step in steps])
        fast = torch.stack([output.steps[step][1][number] for step in steps])
        plain = logits[first:].gather(1, tokens)
        return fast_paths.agree([plain - plain[:, :1]], [fast - fast[:, :1]], TOLERANCE)

    def _counted(self, row: list[int]) -> list[int]:
        """An answer up to its end token, that included."""
        end = next((place for place, token in enumerate(row) if token in self.stops), len(row))
        return row[: end + 1]

    def _plainly(self, prompt: Sequence[int]) -> list[int]:
        """One pass over everything for each token."""
        forced, new = self.settings.forced_bos_token_id, list[int]()
        while len(new) < self.max_new_tokens and not (new and new[-1] in self.stops):
            is_forced = not new and forced is not None
            new.append(int(forced) if is_forced else int(self._logits(prompt, new, 1)[-1].argmax()))
        return new

    def _logits(self, prompt: Sequence[int], new: Sequence[int], count: int) -> Tensor:
        """Logits ``(count, V)`` of the last positions, by one pass over a row alone."""
        inputs: dict[str, Any] = fast_paths.options(self.model)
        read = list(prompt) + list(new) if self.is_decoder else list(prompt)
        inputs["input_ids"], inputs["attention_mask"] = pad([read], 0, self.model.device)
        if not self.is_decoder:
            own = self.settings.decoder_start_token_id
            start = start_id(self.model) if own is None else int(own)
            inputs["decoder_input_ids"] = torch.tensor([[start, *new]], device=self.model.device)
        elif "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            inputs["logits_to_keep"] = count
        logits: Tensor = self.model(**inputs).logits[0, -count:].float()
        return logits


def _ends(batch: Rows) -> list[int]:
    """Places of the longest and of the shortest row of a batch sorted by length."""
    return sorted({0, len(batch) - 1})
