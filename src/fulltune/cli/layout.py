"""Commands in the order of their use: the panels of ``--help`` with their commands, and an example of each."""

from __future__ import annotations

from collections.abc import Mapping

#: Panel → command → example.
Layout = Mapping[str, Mapping[str, str]]

PROGRAM: Layout = {
    "From data to a verdict": {
        "init": "fulltune init reviews.csv; questions with queries: fulltune init questions.csv company.db",
        "plan": "fulltune plan config.yaml --quick",
        "run": "fulltune run config.yaml --set train.epochs=3",
        "evaluate": "fulltune evaluate latest --set data.eval=new_rows.jsonl",
        "compare": "fulltune compare latest --data",
        "verdict": "fulltune verdict before.jsonl after.jsonl --metric accuracy --require not-worse",
    },
    "Use and keep models": {
        "predict": "fulltune predict latest new_rows.csv --output answers.csv",
        "serve": "fulltune serve reviews@production",
        "export": "fulltune export latest exported --format onnx",
        "models": "fulltune models list",
    },
    "Search for better settings": {
        "lr-find": "fulltune lr-find config.yaml",
        "sweep": "fulltune sweep config.yaml --over train.learning_rate=1e-5..1e-3:log --trials 10",
        "methods": "fulltune methods config.yaml --methods full,lora",
    },
    "Examples, machine, processes": {
        "demo": "fulltune demo contracts",
        "doctor": "fulltune doctor",
        "launch": "fulltune launch --processes 2 run config.yaml",
    },
}

MODELS: Layout = {
    "Look": {
        "list": "fulltune models list",
        "show": "fulltune models show reviews",
        "verify": "fulltune models verify reviews@3",
    },
    "Choose the version in use": {
        "promote": "fulltune models promote reviews@3",
        "rollback": "fulltune models rollback reviews --reason 'fails on long texts'",
        "register": "fulltune models register latest",
    },
    "Write files": {
        "export": "fulltune models export reviews@production --to exported",
        "apply-delta": "fulltune models apply-delta bert-base-uncased reviews.delta --to restored",
        "gc": "fulltune models gc --keep 2",
    },
    "Mix weights": {
        "interpolate": "fulltune models interpolate latest",
        "soup": "fulltune models soup 20260131-235959 20260201-101500 --to averaged",
    },
}


def panel_of(layout: Layout, name: str) -> str | None:
    """Return the panel of a command; None for one without a place."""
    return next((panel for panel, commands in layout.items() if name in commands), None)


def example_of(layout: Layout, name: str) -> str | None:
    """Return the example of a command; None for one without a place."""
    return next((commands[name] for commands in layout.values() if name in commands), None)


def rank(layout: Layout, name: str) -> int:
    """Return the place of a command; those without one come last."""
    order = [name for commands in layout.values() for name in commands]
    return order.index(name) if name in order else len(order)
