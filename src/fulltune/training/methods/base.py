"""What a method is: which weights learn, what must hold while they do, and the proof of it.

A method never knows which task it trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from fulltune.config import AdapterConfig, Config, RegularizeConfig
from fulltune.errors import ConfigError, Problem
from fulltune.records.run import Parameters

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import TrainerCallback

    from fulltune.models.bundle import Bundle
    from fulltune.tasks.base import Features


class Method(ABC):
    """Base of all methods; one instance a run, used in the order ``prepare``, ``features``, ``callbacks``, ``proof``,
    ``save``, ``merge``.

    Attributes:
        name: As a config names it.
        reads: Keys of ``adapter`` that it reads; any other that is set is refused.
        refuses: Keys of ``regularize`` that it cannot do.
        trains_all: Every parameter learns; otherwise checkpoints hold those that do, and no others, and there is a
            :meth:`save`.
        is_beside: What is trained lies beside the weights until :meth:`merge`, which changes the model's numbers
            by rounding.
        stays_apart: What is trained is no part of the weights, so that the model is stored as base and adapter.

    Raises:
        ConfigError: The config asks for something that the method does not do.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    refuses: ClassVar[frozenset[str]] = frozenset()
    trains_all: ClassVar[bool] = True
    is_beside: ClassVar[bool] = False
    stays_apart: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        self.config = config
        problems = [*self._unread_keys(), *self._refused_keys()]
        if problems:
            raise ConfigError(problems)

    @classmethod
    def reserved(cls, adapter: AdapterConfig) -> int:
        """Return how many positions of the context window the method itself uses."""
        return 0

    @abstractmethod
    def prepare(self, bundle: Bundle) -> Bundle:
        """Make ready what will learn, in place where it can be; returns what is to be trained. A second call with the
        same model changes nothing.

        Raises:
            ModelError: The model cannot be trained in this way.
        """

    def features(self, bundle: Bundle, features: Sequence[Features]) -> Sequence[Features]:
        """Sequences as the prepared model reads them."""
        return features

    def callbacks(self) -> Sequence[TrainerCallback]:
        """Checks that watch training."""
        return ()

    @abstractmethod
    def proof(self, bundle: Bundle) -> Parameters:
        """What was trained, after training, from the tensors themselves.

        Raises:
            ModelError: What the method promises does not hold.
        """

    def save(self, bundle: Bundle, folder: Path) -> None:
        """Write what was trained, without the base, into a folder; called where not all was."""
        raise NotImplementedError

    def merge(self, bundle: Bundle) -> Bundle:
        """Make a plain model of it, in place: what was trained becomes part of its weights."""
        return bundle

    def _unread_keys(self) -> Iterator[Problem]:
        usual = AdapterConfig()
        for key, value in self.config.adapter:
            if value != getattr(usual, key) and key not in self.reads:
                known = ", ".join(sorted(self.reads)) or "none"
                yield Problem(
                    f"{value!r} for the method {self.name}",
                    f"keys that it reads ({known})",
                    "remove it, or choose another method",
                    field=f"adapter.{key}",
                )

    def _refused_keys(self) -> Iterator[Problem]:
        usual = RegularizeConfig()
        for key, value in self.config.regularize:
            if value != getattr(usual, key) and key in self.refuses:
                yield Problem(
                    f"{value!r} for the method {self.name}",
                    "a method whose weights it can hold, such as full",
                    "remove it, or choose another method",
                    field=f"regularize.{key}",
                )
