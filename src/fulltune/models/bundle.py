"""A loaded model with its tokenizer, and facts about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    """A loaded checkpoint: everything that a task or a method needs to know of it.

    Attributes:
        model: In float32, in eval mode.
        tokenizer: Fast where there is one; ``pad_token`` is set unless it has no special token at all.
        family: ``decoder``, ``encoder`` or ``encoder-decoder``.
        head: ``lm`` (the checkpoint's own head, or none for an encoder without one) or ``classification``.
        window: Longest input in tokens that the model takes (positions).
        info: Source, hash and architecture, for the record.
        fresh: Names of the parameters that the checkpoint lacks: a new head's, drawn from a seed.
        grown: Rows that were added to the embeddings, for tokens that the checkpoint lacks.
        stored_head: The classification head that the checkpoint holds, whether it was loaded or not; None without one.
        with_own_head: Loads the checkpoint under that head, its classes those of the task; None where it lacks one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    head: Head
    window: int
    info: ModelInfo
    fresh: tuple[str, ...] = ()
    grown: int = 0
    stored_head: heads.StoredHead | None = None
    with_own_head: Callable[[], Bundle] | None = None

    @property
    def prompt_ids(self) -> list[int]:
        """Ids to put before every input, that of the encoder where there is one: those of a soft prompt, if any."""
        return list(getattr(reconcile.input_embeddings(self.model), "prompt_ids", ()))

    @property
    def has_lm_head(self) -> bool:
        """Whether the checkpoint brings its own head for words (an encoder may have none)."""
        return self.model.get_output_embeddings() is not None


def family_of(config: PretrainedConfig) -> Family:
    """Which of the three families a config belongs to."""
    if config.is_encoder_decoder:
        return "encoder-decoder"
    # BERT and its kin can also be built as decoders, but what can fill a mask is an encoder here; so is what cannot
    # continue a text (CANINE).
    fills = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    return "encoder" if fills or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "decoder"


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes in a model: its parameters that are not frozen, each once, and its buffers."""
    chosen = {name for name, value in model.named_parameters() if value.requires_grad}
    chosen |= {name for name, _ in model.named_buffers()}
    return {name: value for name, value in model.state_dict().items() if name in chosen}


@contextmanager
def with_base_head(base: Bundle, student: Bundle) -> Iterator[Bundle]:
    """The student's body under the base's own head for words, while the block lasts; no weight is copied.

    A student that still has that head is given as it is; a base without one gives the student's bare body. ``base`` is
    borrowed: it must not be used otherwise in the block.
    """
    if student.head == base.head or student.model is base.model:
        yield student
        return
    body: Any = student.model.base_model
    host: Any = base.model
    if host.base_model is host and base.family != "encoder-decoder":
        yield replace(base, model=body)
        return
    # T5 keeps the parts of its body beside its head; others have one module for the body.
    names = [host.base_model_prefix] if host.base_model is not host else [name for name, _ in body.named_children()]
    kept, device = {name: getattr(host, name) for name in names}, host.device
    try:
        for name in names:
            setattr(host, name, body if host.base_model_prefix == name else getattr(body, name))
        yield replace(base, model=host.to(body.device))
    finally:
        for name, part in kept.items():
            setattr(host, name, part)
        host.to(device)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' own bars and tables: a new head, say, is announced by the record."""
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
