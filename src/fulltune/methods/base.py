"""What a method is: which weights learn, what must hold while they do, and the proof of it.

A method never knows which task it trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from fulltune.config import Config
from fulltune.records import Parameters

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from fulltune.model import Bundle


class Method(ABC):
    """Base of all methods; one instance a run, used in the order ``prepare``, ``callbacks``, ``proof``.

    Raises:
        ConfigError: The config asks for something that the method does not do.
    """

    name: ClassVar[str]

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def prepare(self, bundle: Bundle) -> Bundle:
        """Make ready what will learn, in place where it can be; returns what is to be trained.

        Raises:
            ModelError: The model cannot be trained in this way.
        """

    def callbacks(self) -> Sequence[TrainerCallback]:
        """Checks that watch training."""
        return ()

    @abstractmethod
    def proof(self, bundle: Bundle) -> Parameters:
        """What was trained, after training, from the tensors themselves.

        Raises:
            ModelError: What the method promises does not hold.
        """
