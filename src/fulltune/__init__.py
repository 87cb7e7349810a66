"""Full FP32 fine-tuning that is measured before it is believed.

    import fulltune

    record = fulltune.run("config.yaml")
    print(record.headline)

Every public name is imported when it is first used, so ``import fulltune`` costs milliseconds and does not load torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulltune.asking import ask as ask
    from fulltune.auto_tokenizer import AutoTokenizer as AutoTokenizer
    from fulltune.averaging import soup as soup
    from fulltune.config import Config as Config
    from fulltune.config import load_config as load_config
    from fulltune.errors import ConfigError as ConfigError
    from fulltune.errors import DataError as DataError
    from fulltune.errors import DivergenceError as DivergenceError
    from fulltune.errors import FulltuneError as FulltuneError
    from fulltune.errors import IncompatibleError as IncompatibleError
    from fulltune.errors import MemoryExhausted as MemoryExhausted
    from fulltune.errors import MissingDependencyError as MissingDependencyError
    from fulltune.errors import ModelError as ModelError
    from fulltune.errors import NonFiniteError as NonFiniteError
    from fulltune.errors import PromotionRefused as PromotionRefused
    from fulltune.errors import StoreError as StoreError
    from fulltune.errors import TrainingStopped as TrainingStopped
    from fulltune.export import export as export
    from fulltune.interpolation import interpolate as interpolate
    from fulltune.lr_find import find_learning_rate as find_learning_rate
    from fulltune.method_comparison import compare_methods as compare_methods
    from fulltune.pipeline import compare as compare
    from fulltune.pipeline import evaluate as evaluate
    from fulltune.pipeline import run as run
    from fulltune.records import Record as Record
    from fulltune.records import read_record as read_record
    from fulltune.store.registry import Registry as Registry
    from fulltune.sweep import sweep as sweep
    from fulltune.training.script_arguments import Seq2SeqTrainingArguments as Seq2SeqTrainingArguments
    from fulltune.training.script_arguments import TrainingArguments as TrainingArguments
    from fulltune.training.seq2seq_trainer import Seq2SeqTrainer as Seq2SeqTrainer
    from fulltune.training.trainer import Trainer as Trainer

__version__ = "0.1.0"

_EXPORTS = {
    "Config": "fulltune.config",
    "load_config": "fulltune.config",
    "ConfigError": "fulltune.errors",
    "DataError": "fulltune.errors",
    "DivergenceError": "fulltune.errors",
    "FulltuneError": "fulltune.errors",
    "IncompatibleError": "fulltune.errors",
    "MissingDependencyError": "fulltune.errors",
    "ModelError": "fulltune.errors",
    "MemoryExhausted": "fulltune.errors",
    "NonFiniteError": "fulltune.errors",
    "PromotionRefused": "fulltune.errors",
    "StoreError": "fulltune.errors",
    "TrainingStopped": "fulltune.errors",
    "ask": "fulltune.asking",
    "AutoTokenizer": "fulltune.auto_tokenizer",
    "soup": "fulltune.averaging",
    "export": "fulltune.export",
    "interpolate": "fulltune.interpolation",
    "find_learning_rate": "fulltune.lr_find",
    "compare_methods": "fulltune.method_comparison",
    "compare": "fulltune.pipeline",
    "evaluate": "fulltune.pipeline",
    "run": "fulltune.pipeline",
    "Record": "fulltune.records",
    "read_record": "fulltune.records",
    "sweep": "fulltune.sweep",
    "Registry": "fulltune.store.registry",
    "Seq2SeqTrainer": "fulltune.training.seq2seq_trainer",
    "Trainer": "fulltune.training.trainer",
    "Seq2SeqTrainingArguments": "fulltune.training.script_arguments",
    "TrainingArguments": "fulltune.training.script_arguments",
}

__all__ = [*_EXPORTS, "__version__"]  # noqa: PLE0604 - names of _EXPORTS, all strings


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps ``fulltune.compare`` the function.

    The import system binds a submodule to its package under the submodule's name. ``compare``, ``evaluate`` and
    ``sweep`` are also names of functions here, and those are what ``fulltune.compare(...)`` means, whatever was
    imported before.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _EXPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
