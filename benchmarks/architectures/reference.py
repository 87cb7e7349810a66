"""Answers of plain transformers: one row at a time, without padding, cache, kernels or shared prefixes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

Family = Literal["decoder", "encoder", "encoder-decoder"]

_AUTO = {"decoder": AutoModelForCausalLM, "encoder": AutoModelForMaskedLM, "encoder-decoder": AutoModelForSeq2SeqLM}

#: Two tokens whose logits differ by less than this may swap with the order of a sum.
TIE = 1e-4


@dataclass(frozen=True)
class Answer:
    """A greedy continuation without its end token, and at which steps two tokens were tied."""

    ids: tuple[int, ...]
    ties: frozenset[int]


class Reference:
    """A model that is called with one row at a time.

    Args:
        model: In eval mode.
        family: Its family.
    """

    def __init__(self, model: Any, family: Family) -> None:
        self.model, self.family = model, family
        # FSMT's decoder sees later tokens unless the cache is turned off.
        knows_cache = "use_cache" in inspect.signature(model.forward).parameters
        self._without_cache = {"use_cache": False} if knows_cache else {}
        self._attention = getattr(model.config, "attention_type", None)

    @classmethod
    def load(cls, folder: Path, family: Family, *, classifies: bool = False) -> Reference:
        """Load a folder with plain transformers."""
        auto = AutoModelForSequenceClassification if classifies else _AUTO[family]
        return cls(auto.from_pretrained(folder, dtype=torch.float32).eval(), family)

    def token_losses(self, ids: Sequence[int], labels: Sequence[int]) -> torch.Tensor:
        """Return the negative log-likelihood in nats of each labeled token, ``(n,)``.

        Args:
            ids: Input of a decoder or of an encoder.
            labels: The tokens to be predicted: as long as ``ids`` for a decoder, with -100 where there is no label.
        """
        targets = torch.tensor(list(labels))
        if self.family == "encoder-decoder":
            read = torch.tensor([[self._start(), *labels[:-1]]])
            logits = self._forward(input_ids=torch.tensor([list(ids)]), decoder_input_ids=read).logits[0]
        else:
            logits, targets = self._forward(input_ids=torch.tensor([list(ids)])).logits[0, :-1], targets[1:]
        losses = F.cross_entropy(logits.double(), targets, reduction="none", ignore_index=-100)
        return losses[targets != -100]

    def training_loss(self, ids: Sequence[int], labels: Sequence[int]) -> torch.Tensor:
        """Return what training minimizes on a row: the sum of the losses of its labeled tokens.

        ProphetNet predicts several tokens at each position, and routers may have their own loss: there it is the
        model's own loss, times the number of labeled tokens.
        """
        losses = self.token_losses(ids, labels)
        config = self.model.config
        if config.model_type != "prophetnet" and not getattr(config, "output_router_logits", False):
            return losses.sum()
        own = self._forward(input_ids=torch.tensor([list(ids)]), labels=torch.tensor([list(labels)])).loss
        return own.double() * len(losses)

    def class_logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the logits of a classification head, ``(classes,)``."""
        return self._forward(input_ids=torch.tensor([list(ids)])).logits[0].double()

    @torch.no_grad()
    def greedy(self, ids: Sequence[int], steps: int, ends: Iterable[int]) -> Answer:
        """Continue a prompt (or answer a source) token by token."""
        stops = set(ends)
        written = list[int]()
        ties = set[int]()
        for step in range(steps):
            values, tokens = self._next_logits(ids, written).topk(2)
            if float(values[0] - values[1]) < TIE:
                ties.add(step)
            if int(tokens[0]) in stops:
                break
            written.append(int(tokens[0]))
        return Answer(tuple(written), frozenset(ties))

    def _next_logits(self, ids: Sequence[int], written: Sequence[int]) -> torch.Tensor:
        if self.family == "encoder-decoder":
            read = torch.tensor([[self._start(), *written]])
            return self._forward(input_ids=torch.tensor([list(ids)]), decoder_input_ids=read).logits[0, -1]
        return self._forward(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1]

    def _forward(self, **inputs: torch.Tensor) -> Any:
        for module in self.model.modules():
            if self._attention == "block_sparse" and hasattr(module, "set_attention_type"):
                # BigBird turns sparse attention off for good at the first short text.
                module.set_attention_type(self._attention)
        return self.model(**inputs, **self._without_cache)

    def _start(self) -> int:
        own = self.model.generation_config.decoder_start_token_id
        return int(self.model.config.decoder_start_token_id if own is None else own)
