"""Implement ``prompt-tuning``: train vectors before every input, and a classification head (Lester et al. 2021).

The vectors are initialized with the embeddings of a text, or of random tokens of the vocabulary, which trains better
than noise (section 3.2). They cannot be merged: the model is stored as its base and the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fulltune.config import AdapterConfig
from fulltune.errors import ConfigError
from fulltune.models.token_ids import IGNORED
from fulltune.tasks.base import Features
from fulltune.training.methods.adapters import Partial, embedding_rows, head_modules, train_modules

if TYPE_CHECKING:
    from torch import Tensor

    from fulltune.models.bundle import Bundle

#: Number of tokens that a prompt is drawn from: the first tokens of a vocabulary are the most common (as in the paper).
_COMMON = 5000


class PromptTuning(Partial):
    """Train ``adapter.prompt_tokens`` vectors before the input of a decoder or an encoder."""

    name = "prompt-tuning"
    reads = frozenset({"prompt_tokens", "prompt_text"})
    refuses = frozenset({"l2_sp", "ewc", "distill", "layer_decay"})
    stored_as = "adapter"

    @classmethod
    def reserved(cls, adapter: AdapterConfig) -> int:
        return adapter.prompt_tokens

    def attach(self, bundle: Bundle) -> None:
        from fulltune.models.adapters import soft_prompt

        length = self.config.adapter.prompt_tokens
        vectors = soft_prompt.vectors_of(bundle.model, self._first_ids(bundle), length)
        soft_prompt.attach(bundle.model, vectors)
        train_modules(bundle.model, head_modules(bundle))

    def is_added(self, name: str) -> bool:
        from fulltune.models.adapters import soft_prompt

        return name == soft_prompt.NAME

    def features(self, bundle: Bundle, features: Sequence[Features]) -> Sequence[Features]:
        ids = bundle.prompt_ids
        are_aligned = bundle.family == "decoder" and bundle.head == "lm"

        def labels(item: Features) -> Any:
            return [IGNORED] * len(ids) + list(item.labels) if are_aligned else item.labels  # type: ignore[arg-type]

        return [replace(item, input_ids=ids + list(item.input_ids), labels=labels(item)) for item in features]

    def stored(self, bundle: Bundle) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        from fulltune.models.adapters import files, soft_prompt

        trained = dict(self._trained(bundle.model))
        vectors = trained.pop(soft_prompt.NAME)
        heads = {f"{files.PROMPT_PREFIX}{name}": value for name, value in trained.items()}
        return _peft_config(bundle, vectors), {files.PROMPT_KEY: vectors, **heads}

    def _first_ids(self, bundle: Bundle) -> list[int]:
        text = self.config.adapter.prompt_text
        if text is None:
            common = [
                token
                for token in range(min(_COMMON, embedding_rows(bundle), len(bundle.tokenizer)))
                if token not in set(bundle.tokenizer.all_special_ids)
            ]
            drawn = np.random.default_rng(self.config.train.seed).choice(common, self.config.adapter.prompt_tokens)
            return [int(token) for token in drawn]
        ids = list(bundle.tokenizer(text, add_special_tokens=False).input_ids)
        if not ids:
            raise ConfigError(
                f"{text!r} has no tokens",
                expected="a text",
                fix="set a text, or remove it",
                field="adapter.prompt_text",
            )
        return ids


def _peft_config(bundle: Bundle, vectors: Tensor) -> dict[str, Any]:
    """Return the fields of the ``PromptTuningConfig`` of PEFT that loads the vectors."""
    kinds = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}
    return {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_CLS" if bundle.head == "classification" else kinds[bundle.family],
        "num_virtual_tokens": int(vectors.shape[0]),
        "token_dim": int(vectors.shape[1]),
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
