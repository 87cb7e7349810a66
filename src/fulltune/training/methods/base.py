"""Define the base class of methods: the trainable parameters, the checks during training, and the proof afterwards.

A method does not depend on the task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fulltune.config import AdapterConfig, Config, RegularizeConfig
from fulltune.errors import ConfigError, Problem
from fulltune.records.run import Parameters
from fulltune.training.optimizers import has_8bit_state

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import TrainerCallback

    from fulltune.models.bundle import Bundle
    from fulltune.tasks.base import Features
    from fulltune.training.methods.proof import FirstStep


#: Options of ``trainer`` that reduce the precision.
_REDUCED = ("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval")


class Method(ABC):
    """Base class of all methods.

    A run has one instance and calls ``prepare``, ``features``, ``callbacks``, ``proof``, ``save`` and ``merge`` in this
    order.

    Attributes:
        name: Name in a config.
        reads: Keys of ``adapter`` that the method reads; it is an error to set any other.
        refuses: Keys of ``regularize`` that the method does not support.
        trains_all: All parameters are trainable. Otherwise checkpoints contain the trainable parameters only, and the
            method has :meth:`save`.
        stored_as: Storage of the trained tensors. ``weights``: they are weights of the model. ``merged``: they are
            separate until :meth:`merge` adds them to the weights, which changes outputs by rounding. ``adapter``: they
            cannot be merged, so the model is stored as base and adapter.

    Raises:
        ConfigError: The config sets an option that the method does not support.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    refuses: ClassVar[frozenset[str]] = frozenset()
    trains_all: ClassVar[bool] = True
    stored_as: ClassVar[Literal["weights", "merged", "adapter"]] = "weights"

    def __init__(self, config: Config) -> None:
        self.config = config
        problems = [*self._unread_keys(), *self._refused_keys()]
        if problems:
            raise ConfigError(problems)

    @cached_property
    def first_step(self) -> FirstStep:
        """Check the gradients and the optimizer of the first step: a callback that collects evidence."""
        from fulltune.training.methods.proof import FirstStep

        return FirstStep(is_8bit=has_8bit_state(self.config.train.optimizer))

    @classmethod
    def reserved(cls, adapter: AdapterConfig) -> int:
        """Return how many positions of the context window the method itself uses."""
        return 0

    @abstractmethod
    def prepare(self, bundle: Bundle) -> None:
        """Make the parameters of the method trainable, in place: guards and evaluations read the same bundle.

        A second call with the same model has no effect.

        Raises:
            ModelError: The method does not support the model.
        """

    def features(self, bundle: Bundle, features: Sequence[Features]) -> Sequence[Features]:
        """Return the sequences in the form that the prepared model reads."""
        return features

    def callbacks(self) -> Sequence[TrainerCallback]:
        """Return callbacks that check the training."""
        return ()

    @abstractmethod
    def proof(self, bundle: Bundle) -> Parameters:
        """Return what was trained, measured on the tensors after training.

        Raises:
            ModelError: A parameter that must change did not, or the reverse.
        """

    def save(self, bundle: Bundle, folder: Path) -> None:
        """Write the trained tensors without the base to a folder; only for methods that do not train all parameters."""
        raise NotImplementedError

    def merge(self, bundle: Bundle) -> None:  # noqa: B027 - most methods train the weights themselves
        """Merge the trained tensors into the weights, in place."""

    def _unread_keys(self) -> Iterator[Problem]:
        default = AdapterConfig()
        for key, value in self.config.adapter:
            if value != getattr(default, key) and key not in self.reads:
                known = ", ".join(sorted(self.reads)) or "none"
                yield Problem(
                    f"{value!r} for the method {self.name}",
                    f"keys that it reads ({known})",
                    "remove it, or choose another method",
                    field=f"adapter.{key}",
                )

    def _refused_keys(self) -> Iterator[Problem]:
        default = RegularizeConfig()
        for key, value in self.config.regularize:
            if value != getattr(default, key) and key in self.refuses:
                yield Problem(
                    f"{value!r} for the method {self.name}",
                    "a method that supports this penalty, such as full",
                    "remove it, or choose another method",
                    field=f"regularize.{key}",
                )


def refuse_reduced(trainer: Mapping[str, Any], method: str) -> None:
    """Check that training computes in 32-bit floats.

    Args:
        trainer: The section ``trainer``.
        method: Name of the method, for the message.

    Raises:
        ConfigError: An option of ``trainer`` reduces the precision.
    """
    reduced = [name for name in _REDUCED if trainer.get(name)]
    if reduced:
        fix = f"remove it; `{method}` trains in 32-bit floats"
        raise ConfigError([Problem("reduced precision", "float32", fix, field=f"trainer.{name}") for name in reduced])
