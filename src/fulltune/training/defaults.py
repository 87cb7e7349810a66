"""Choose the learning rate and the epochs of a config that leaves them out: by method, model and number of rows.

The values are those of docs/starters.md, the recipes and the demos for models under 50M parameters, and those of the
sources below for larger ones. ``fulltune init`` writes the same ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fulltune.config import Config, TrainConfig
from fulltune.training.advice import SMALL_MODEL, TINY_MODEL
from fulltune.training.arguments import steps_per_epoch

#: Learning rates of full fine-tuning by family: under 10M parameters, under 50M, and of larger models. The last of
#: encoders and decoders: Devlin et al. 2019 (BERT), appendix A.3; of encoder-decoders: the documentation of T5 in
#: transformers.
_FULL_RATES = {
    "encoder": (5e-4, 4e-4, 3e-5),
    "decoder": (4e-4, 3e-4, 3e-5),
    "encoder-decoder": (3e-3, 1e-3, 1e-4),
}

#: Multiples of the rate of full fine-tuning. Hu et al. 2022, appendix D; Schulman et al. 2025, "LoRA Without Regret".
_MULTIPLES = {"lora": 10, "qlora": 10}

#: Highest default of any of these: the end of the usual range for small models (docs/methods.md).
_HIGHEST = 1e-2

#: Rates that do not depend on the size. ``prompt-tuning``: PEFT's guides; Lester et al. 2021 use 0.3, but with
#: Adafactor. ``bitfit``: Ben Zaken et al. 2022, section 4. ``linear-probe``: AdamW's own default.
_OTHER_RATES = {"prompt-tuning": 3e-2, "linear-probe": 1e-3, "bitfit": 1e-3}

#: Epochs over some thousand rows, by family: of models under 50M parameters, and of larger ones.
_USUAL_EPOCHS = {"encoder": (4, 3), "decoder": (3, 3), "encoder-decoder": (15, 10)}

#: Optimizer steps that small data should have at least, and the most epochs for that.
_STEPS, _MOST_EPOCHS = 250, 20

#: The same for a small base that learns a language which it was not pretrained on, from inputs without a schema. On 600
#: questions of geoquery 675 steps took 2 minutes of one core, and 1,620 steps were no better (docs/init.md).
_LANGUAGE_STEPS, _LANGUAGE_EPOCHS = 700, 60


@dataclass(frozen=True)
class ModelKind:
    """What the defaults depend on.

    Attributes:
        family: ``encoder``, ``decoder`` or ``encoder-decoder``.
        parameters: Number of parameters; 0 if it is unknown, which counts as large.
    """

    family: str
    parameters: int

    @property
    def is_small(self) -> bool:
        return 0 < self.parameters < SMALL_MODEL

    @property
    def size(self) -> str:
        """The number of parameters in words."""
        millions = self.parameters / 1e6
        if millions < 1:
            return f"{self.parameters:,} parameters"
        return f"{millions:.1f}M parameters" if self.is_small else f"{millions:,.0f}M parameters"


def learning_rate(kind: ModelKind, method: str = "full") -> float:
    """Return the learning rate that is usual for a model and a method."""
    if method in _OTHER_RATES:
        return _OTHER_RATES[method]
    tiny, small, large = _FULL_RATES[kind.family]
    rate = large if not kind.is_small else tiny if kind.parameters < TINY_MODEL else small
    return float(f"{min(_HIGHEST, rate * _MULTIPLES.get(method, 1)):.3g}")


def epochs(kind: ModelKind, steps_per_epoch: int, *, is_new_language: bool = False) -> int:
    """Return the usual number of epochs, or more for few rows, which otherwise give too few steps.

    Args:
        kind: The model.
        steps_per_epoch: Optimizer steps of an epoch.
        is_new_language: A small base learns to write a language that it was not pretrained on.
    """
    small, large = _USUAL_EPOCHS[kind.family]
    steps, most = (_LANGUAGE_STEPS, _LANGUAGE_EPOCHS) if is_new_language else (_STEPS, _MOST_EPOCHS)
    return max(small if kind.is_small else large, min(math.ceil(steps / max(1, steps_per_epoch)), most))


def is_new_language(config: Config, kind: ModelKind) -> bool:
    """Return True if a small model learns SQL from questions alone, which takes more steps."""
    return config.task == "text2sql" and config.data.schema_in_prompt == "none" and kind.is_small


def with_defaults(config: Config, kind: ModelKind, sequences: int, batches: int | None = None) -> Config:
    """Return the config with a learning rate and epochs, if it leaves them out.

    Args:
        config: The config.
        kind: The model that is trained.
        sequences: Training sequences per epoch.
        batches: Micro-batches per epoch, if they are counted.
    """
    train = config.train
    chosen: dict[str, float] = {}
    if train.learning_rate is None:
        chosen["learning_rate"] = learning_rate(kind, config.method)
    if train.epochs is None:
        steps = steps_per_epoch(train, sequences, batches)
        chosen["epochs"] = float(epochs(kind, steps, is_new_language=is_new_language(config, kind)))
    return config.model_copy(update={"train": train.model_copy(update=chosen)}) if chosen else config


def reasons(asked: TrainConfig, chosen: TrainConfig, kind: ModelKind, sequences: int) -> tuple[str, ...]:
    """Return a sentence per value that :func:`with_defaults` chose.

    Args:
        asked, chosen: The section ``train`` before and after.
        kind: The model.
        sequences: Training sequences per epoch.
    """
    lines = []
    if asked.learning_rate is None:
        size = f" of {kind.size}" if kind.parameters else ""
        lines.append(f"train.learning_rate is not set: {chosen.rate:g}, which is usual for models{size}.")
    if asked.epochs is None and chosen.max_steps is None:
        lines.append(
            f"train.epochs is not set: {chosen.passes:g}, which is usual for {sequences:,} training sequences."
        )
    return tuple(lines)
