"""Define a bundle: a loaded model with its tokenizer and metadata."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
import transformers
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fulltune.models import heads, reconcile
from fulltune.records.run import ModelInfo

Family = Literal["decoder", "encoder", "encoder-decoder"]

Head = Literal["lm", "classification"]


@dataclass(frozen=True)
class Bundle:
    """A loaded checkpoint with everything that tasks and methods need.

    Attributes:
        model: In float32, in eval mode.
        tokenizer: A fast one if available; ``pad_token`` is set unless it has no special token at all.
        family: ``decoder``, ``encoder`` or ``encoder-decoder``.
        head: ``lm`` (the checkpoint's own head, or none for an encoder without one) or ``classification``.
        window: Longest input of the model in tokens (positions).
        info: Source, hash and architecture, for the record.
        fresh: Names of parameters that the checkpoint lacks: those of a new head, initialized from a seed.
        grown: Number of rows that were added to the embeddings, for tokens that the checkpoint lacks.
        closing: Ids that a decoder's tokenizer adds after a text, unless the text is to be continued.
        stored_head: The classification head in the checkpoint, whether it was loaded or not; None if there is none.
        with_own_head: Loads the checkpoint with that head, for the classes of the task; None if there is none.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    head: Head
    window: int
    info: ModelInfo
    fresh: tuple[str, ...] = ()
    grown: int = 0
    closing: tuple[int, ...] = ()
    stored_head: heads.StoredHead | None = None
    with_own_head: Callable[[], Bundle] | None = None

    @property
    def prompt_ids(self) -> list[int]:
        """Ids to prepend to every input (of the encoder, if there is one): those of a soft prompt, else none."""
        return list(getattr(reconcile.input_embeddings(self.model), "prompt_ids", ()))

    @cached_property
    def answer_window(self) -> int:
        """The number of tokens that a decoder can generate; unlimited with relative positions.

        Cached because the library copies the config to answer, and every row asks.
        """
        return reconcile.answer_limit(self.model) or sys.maxsize

    def as_read_with(self, head: Head) -> Bundle:
        """Return the bundle whose tokenizer gives the ids that the model reads with another head; only for encoding."""
        if head == self.head or head == "lm":
            return self
        tokenizer = reconcile.classifier_tokenizer(self.model, self.tokenizer, self.family, self.closing)
        return replace(self, tokenizer=tokenizer, head=head)

    @property
    def has_lm_head(self) -> bool:
        """True if the checkpoint has a language-modeling head (an encoder may have none)."""
        return self.model.get_output_embeddings() is not None


def family_of(config: PretrainedConfig) -> Family:
    """Return the model family of a config."""
    if config.is_encoder_decoder:
        return "encoder-decoder"
    # BERT and similar models can also be built as decoders. Models with a masked-LM head count as encoders, and so do
    # models without a causal-LM head (CANINE).
    has_mask_head = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    return "encoder" if has_mask_head or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "decoder"


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the part of the state dict that training changes: trainable parameters, each once, and buffers."""
    chosen = {name for name, value in model.named_parameters() if value.requires_grad}
    chosen |= {name for name, _ in model.named_buffers()}
    return {name: value for name, value in model.state_dict().items() if name in chosen}


@contextmanager
def with_base_head(base: Bundle, tuned: Bundle) -> Iterator[Bundle]:
    """Yield the body of a tuned model with the base's language-modeling head, without copying weights.

    A tuned model that still has that head is yielded unchanged; if the base has no such head, the bare body is yielded.
    ``base`` is modified within the block and must not be used otherwise there.
    """
    if tuned.head == base.head or tuned.model is base.model:
        yield tuned
        return
    body: Any = tuned.model.base_model
    host: Any = base.model
    if host.base_model is host and base.family != "encoder-decoder":
        yield replace(base, model=body)
        return
    # In T5, the parts of the body are siblings of the head; other models have one module for the body.
    names = [host.base_model_prefix] if host.base_model is not host else [name for name, _ in body.named_children()]
    originals = {name: getattr(host, name) for name in names}
    device = host.device
    try:
        for name in names:
            setattr(host, name, body if host.base_model_prefix == name else getattr(body, name))
        yield replace(base, model=host.to(body.device))
    finally:
        for name, part in originals.items():
            setattr(host, name, part)
        host.to(device)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and messages of transformers within the block; the record reports e.g. a new head."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
