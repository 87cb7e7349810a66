"""Full FP32 fine-tuning that is measured before it is believed.

    import fulltune

    record = fulltune.run("config.yaml")
    print(record.headline)

Every public name is imported when it is first used, so ``import fulltune`` costs milliseconds and does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fulltune.runtime.version import __version__ as __version__

if TYPE_CHECKING:
    from fulltune import callbacks as callbacks
    from fulltune.config import Config as Config
    from fulltune.config import load_config as load_config
    from fulltune.errors import ConfigError as ConfigError
    from fulltune.errors import DataError as DataError
    from fulltune.errors import DivergenceError as DivergenceError
    from fulltune.errors import ExportRefused as ExportRefused
    from fulltune.errors import FulltuneError as FulltuneError
    from fulltune.errors import IncompatibleError as IncompatibleError
    from fulltune.errors import MemoryExhausted as MemoryExhausted
    from fulltune.errors import MissingDependencyError as MissingDependencyError
    from fulltune.errors import ModelError as ModelError
    from fulltune.errors import NonFiniteError as NonFiniteError
    from fulltune.errors import PromotionRefused as PromotionRefused
    from fulltune.errors import StoreError as StoreError
    from fulltune.errors import TrainingStopped as TrainingStopped
    from fulltune.evaluation.verdict import verdict as verdict
    from fulltune.experiments.interpolation import interpolate as interpolate
    from fulltune.experiments.learning_curve import learning_curve as learning_curve
    from fulltune.experiments.lr_find import find_learning_rate as find_learning_rate
    from fulltune.experiments.methods.comparison import compare_methods as compare_methods
    from fulltune.experiments.seeded_runs import run_seeds as run_seeds
    from fulltune.experiments.soup import soup as soup
    from fulltune.experiments.sweep import sweep as sweep
    from fulltune.models.auto_tokenizer import AutoTokenizer as AutoTokenizer
    from fulltune.pipeline.ask import ask as ask
    from fulltune.pipeline.export.export import export as export
    from fulltune.pipeline.judge import Judge as Judge
    from fulltune.pipeline.loaded_model import LoadedModel as LoadedModel
    from fulltune.pipeline.loaded_model import load as load
    from fulltune.pipeline.predict import predict as predict
    from fulltune.pipeline.proposal.propose import init as init
    from fulltune.pipeline.publish import publish as publish
    from fulltune.pipeline.run import compare as compare
    from fulltune.pipeline.run import evaluate as evaluate
    from fulltune.pipeline.run import plan as plan
    from fulltune.pipeline.run import run as run
    from fulltune.records.run import Record as Record
    from fulltune.records.run import read_record as read_record
    from fulltune.serve import serve as serve
    from fulltune.store.registry.registry import Registry as Registry
    from fulltune.training.script_arguments import Seq2SeqTrainingArguments as Seq2SeqTrainingArguments
    from fulltune.training.script_arguments import TrainingArguments as TrainingArguments
    from fulltune.training.seq2seq_trainer import Seq2SeqTrainer as Seq2SeqTrainer
    from fulltune.training.trainer import Trainer as Trainer

_EXPORTS = {
    "Config": "fulltune.config",
    "load_config": "fulltune.config",
    "ConfigError": "fulltune.errors",
    "DataError": "fulltune.errors",
    "DivergenceError": "fulltune.errors",
    "ExportRefused": "fulltune.errors",
    "FulltuneError": "fulltune.errors",
    "IncompatibleError": "fulltune.errors",
    "MissingDependencyError": "fulltune.errors",
    "ModelError": "fulltune.errors",
    "MemoryExhausted": "fulltune.errors",
    "NonFiniteError": "fulltune.errors",
    "PromotionRefused": "fulltune.errors",
    "StoreError": "fulltune.errors",
    "TrainingStopped": "fulltune.errors",
    "ask": "fulltune.pipeline.ask",
    "AutoTokenizer": "fulltune.models.auto_tokenizer",
    "soup": "fulltune.experiments.soup",
    "export": "fulltune.pipeline.export.export",
    "Judge": "fulltune.pipeline.judge",
    "load": "fulltune.pipeline.loaded_model",
    "LoadedModel": "fulltune.pipeline.loaded_model",
    "predict": "fulltune.pipeline.predict",
    "publish": "fulltune.pipeline.publish",
    "interpolate": "fulltune.experiments.interpolation",
    "find_learning_rate": "fulltune.experiments.lr_find",
    "compare_methods": "fulltune.experiments.methods.comparison",
    "verdict": "fulltune.evaluation.verdict",
    "init": "fulltune.pipeline.proposal.propose",
    "compare": "fulltune.pipeline.run",
    "evaluate": "fulltune.pipeline.run",
    "plan": "fulltune.pipeline.run",
    "run": "fulltune.pipeline.run",
    "learning_curve": "fulltune.experiments.learning_curve",
    "Record": "fulltune.records.run",
    "read_record": "fulltune.records.run",
    "run_seeds": "fulltune.experiments.seeded_runs",
    "sweep": "fulltune.experiments.sweep",
    "serve": "fulltune.serve",
    "Registry": "fulltune.store.registry.registry",
    "Seq2SeqTrainer": "fulltune.training.seq2seq_trainer",
    "Trainer": "fulltune.training.trainer",
    "Seq2SeqTrainingArguments": "fulltune.training.script_arguments",
    "TrainingArguments": "fulltune.training.script_arguments",
}

#: Modules with public names of their own.
_MODULES = ("callbacks",)

__all__ = [*_EXPORTS, *_MODULES, "__version__"]  # noqa: PLE0604 - names of _EXPORTS, all strings


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fulltune.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
