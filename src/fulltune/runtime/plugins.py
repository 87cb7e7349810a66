"""Load tasks and methods by name: built-in ones from a table, others from installed packages.

A package registers one by an entry point, ``name = "module:attribute"``, in the group ``fulltune.tasks`` or
``fulltune.methods``. Built-in names cannot be overridden.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from fulltune.errors import ConfigError, did_you_mean

PluginKind = Literal["task", "method"]

BUILT_IN: dict[PluginKind, dict[str, str]] = {
    "task": {
        "causal-lm": "fulltune.tasks.causal_lm:CausalLM",
        "classification": "fulltune.tasks.classification:Classification",
        "seq2seq": "fulltune.tasks.seq2seq:Seq2Seq",
        "text2sql": "fulltune.tasks.text2sql.task:Text2SQL",
    },
    "method": {
        "full": "fulltune.training.methods.full:Full",
        "lora": "fulltune.training.methods.lora:Lora",
        "qlora": "fulltune.training.methods.qlora:QLora",
        "prompt-tuning": "fulltune.training.methods.prompt_tuning:PromptTuning",
        "linear-probe": "fulltune.training.methods.linear_probe:LinearProbe",
        "bitfit": "fulltune.training.methods.bitfit:BitFit",
    },
}


def names(kind: PluginKind) -> tuple[str, ...]:
    """Return every name that :func:`load` accepts, sorted."""
    return tuple(sorted(BUILT_IN[kind].keys() | _external(kind).keys()))


def load(kind: PluginKind, name: str) -> Any:
    """Return the class registered under a name.

    Raises:
        ConfigError: The name is unknown, or the package that provides it cannot be imported or lacks the class.
    """
    if name in BUILT_IN[kind]:
        module, _, attribute = BUILT_IN[kind][name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    external = _external(kind)
    if name not in external:
        listed = ", ".join(names(kind))
        fix = did_you_mean(name, names(kind)) or f"use one of these, or install the package that provides the {kind}"
        raise ConfigError(f"there is no {kind} {name!r}", expected=f"one of {listed}", fix=fix, field=kind)
    return _load_external(kind, external[name])


def _external(kind: PluginKind) -> dict[str, EntryPoint]:
    """Return the entry points of other packages by name."""
    return {point.name: point for point in entry_points(group=f"fulltune.{kind}s") if point.name not in BUILT_IN[kind]}


def _load_external(kind: PluginKind, point: EntryPoint) -> Any:
    package = point.dist.name if point.dist else "its package"
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the {kind} {point.name!r} of {package} cannot be loaded ({type(error).__name__}: {error})",
            expected=f"{point.value} to be importable",
            fix=f"reinstall or upgrade {package}",
            field=kind,
        ) from error
