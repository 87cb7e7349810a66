"""Use a model that somebody else has loaded or trained, and leave it as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fulltune.errors import ModelError
from fulltune.models import reconcile
from fulltune.models.bundle import Bundle, Head, family_of
from fulltune.models.load import position_window
from fulltune.models.modes import in_mode
from fulltune.models.sparse_attention import attention_type_kept
from fulltune.records.run import ModelInfo


@contextmanager
def borrowed(model: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[Bundle]:
    """Yield a model and its tokenizer as a bundle, in eval mode; afterwards the model is as it was.

    Weights and dtype are not changed. Settings are reconciled as those of a loaded checkpoint, for the duration of the
    block: the model's own objects, and a copy of the tokenizer.

    Args:
        model: A model of transformers, or one with adapters of PEFT.
        tokenizer: Its tokenizer.

    Raises:
        ModelError: The model is of another kind, or has no embeddings for tokens of the tokenizer.
    """
    model = _plain(model)
    tokenizer = copy.deepcopy(tokenizer)
    _check_vocabulary(model, tokenizer)
    config, generation = dict(vars(model.config)), getattr(model, "generation_config", None)
    head = _head(model)
    family = family_of(model.config)
    with in_mode(model, training=False), attention_type_kept(model):
        try:
            if generation is not None:
                model.generation_config = copy.deepcopy(generation)
            settled = reconcile.reconcile(model, tokenizer, family, is_classifier=head == "classification")
            info = ModelInfo(
                source=type(model).__name__,
                sha256="",
                family=family,
                architecture=type(model).__name__,
                reconciled=settled.changes,
            )
            yield Bundle(model, tokenizer, family, head, position_window(model, tokenizer), info)
        finally:
            vars(model.config).clear()
            vars(model.config).update(config)
            if generation is not None:
                model.generation_config = generation


def _plain(model: Any) -> PreTrainedModel:
    """Return the model of transformers, in which PEFT has put its adapters if there are any."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    prompts = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    if isinstance(inner, PreTrainedModel) and not prompts:
        return inner
    raise ModelError(
        f"a {type(model).__module__}.{type(model).__name__}{' with trained prompts' if prompts else ''}",
        expected="a model of transformers and its tokenizer, a name, or a function from texts to answers",
        fix="pass a function that answers a list of texts",
        field="model",
    )


def _check_vocabulary(model: PreTrainedModel, tokenizer: Any) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            "no tokenizer" if tokenizer is None else f"a {type(tokenizer).__name__} in place of a tokenizer",
            expected="the tokenizer of the model",
            fix="pass it as the second argument",
            field="tokenizer",
        )
    rows = reconcile.embedding_rows(model)
    if rows is not None and rows < len(tokenizer):
        raise ModelError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model embeddings for {rows:,}",
            expected="an embedding for each token",
            fix="call model.resize_token_embeddings(len(tokenizer)) before training",
            field="tokenizer",
        )


def _head(model: PreTrainedModel) -> Head:
    is_classifier = any(kind.__name__.endswith("ForSequenceClassification") for kind in type(model).__mro__)
    return "classification" if is_classifier else "lm"
