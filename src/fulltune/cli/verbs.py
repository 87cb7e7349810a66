"""Answer commands, files and options that do not exist with those that were probably meant."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from fulltune.cli import layout
from fulltune.errors import closest

#: Command, and what other tools call it. Of several commands for one word, the first one that exists is named.
_COMMANDS = {
    "run CONFIG": "train fit finetune fine-tune tune sft start execute learn go",
    "plan CONFIG": "check validate dry-run dryrun estimate lint preview",
    "evaluate MODEL": "eval test score benchmark metrics",
    "predict MODEL DATA": "predict infer inference generate classify apply pipeline answer",
    "serve MODEL": "server api http rest host listen endpoint",
    "compare base tuned --ask TEXT": "predict infer inference generate classify apply answer ask chat query prompt",
    "init DATA": "new create setup config configure autoconfig quickstart wizard prepare preprocess load convert-data",
    "sweep CONFIG --over KEY=LOW..HIGH": "hpo search optimize hyperopt grid hyperparameter-search",
    "lr-find CONFIG": "find-lr lrfind find-learning-rate",
    "export MODEL DIR": "export convert quantize onnx gguf save",
    "models export NAME": "export convert save push upload publish deploy merge",
    "models list": "list ls registry versions show models-list runs",
    "models promote NAME": "promote deploy release",
    "models rollback NAME": "rollback undo revert",
    "run --resume RUN": "resume continue restart",
    "doctor": "env info diagnose status version-info system",
    "demo NAME": "example examples tutorial sample",
    "launch run CONFIG": "torchrun accelerate distributed deepspeed",
    "compare A B": "diff versus",
    "list": "ls all",
    "gc": "delete remove rm prune clean",
    "--help": "help man usage",
    "--version": "version",
}

_CONFIGS = frozenset({".yaml", ".yml"})
_DATA = frozenset(
    f".{name}"
    for name in "jsonl ndjson csv tsv parquet arrow xlsx xls ods txt gz sqlite db json".split()  # noqa: SIM905
)

#: Options of other tools that are none of ``--set``, and what is meant.
_OPTIONS = {
    **dict.fromkeys(
        ("--config", "--config-file", "-c", "-f"), "write the config without an option: fulltune run CONFIG"
    ),
    **dict.fromkeys(("--output-dir", "--output_dir", "--output", "-o"), "use --out DIR"),
    **dict.fromkeys(
        ("--gpus", "--num_processes", "--nproc_per_node", "--num-processes"),
        "use fulltune launch --processes N run CONFIG",
    ),
    "-v": "use --verbose",
    "-q": "use --quiet",
    "-y": "nothing asks for confirmation: leave it out",
}

#: The error of a wrong command line; typer exports only classes that are derived from it.
UsageError: type[Any] = typer.BadParameter.__mro__[1]


class Verbs(TyperGroup):
    """A group of commands in the order of their use; it names the command that was probably meant."""

    layout: ClassVar[layout.Layout] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        command: Any  # typer does not declare what its help reads
        for name, command in self.commands.items():
            example = layout.example_of(self.layout, name)
            command.epilog = command.epilog or (f"Example: {example}" if example else None)
            command.rich_help_panel = layout.panel_of(self.layout, name) or command.rich_help_panel

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=lambda name: layout.rank(self.layout, name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            advice = advice_on_verb(name, args[1:], self.commands, str(ctx.command_path))
            if advice:
                ctx.fail(advice)
        return super().resolve_command(ctx, args)


class Program(Verbs):
    """The program itself, which explains unknown options and arguments of all commands."""

    layout = layout.PROGRAM

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            _explain(error)
            raise


class Models(Verbs):
    """The commands of the registry."""

    layout = layout.MODELS


def advice_on_verb(name: str, rest: Iterable[str], commands: Container[str], path: str = "fulltune") -> str:
    """Return what was probably meant by a word that is no command, or an empty text.

    Args:
        name: The word.
        rest: The words after it.
        commands: Names of the existing commands.
        path: The command line before the word.
    """
    plain = name.lower().replace("_", "-")
    for command, names in _COMMANDS.items():
        first = command.split()[0]
        if plain in names.split() and (first in commands or first.startswith("--")):
            return f"No such command {name!r}: the command is `{path} {command}`."
    if "run" not in commands:
        return ""
    words = " ".join([name, *rest])
    if _is_config(name):
        return f"A command is missing: `{path} run {words}` trains, `{path} plan {words}` shows what that would do."
    if Path(name).suffix.lower() in _DATA or Path(name).exists():
        return f"A command is missing: `{path} init {words}` writes a config for this data."
    return _misspelled(name, commands, path)


def _misspelled(name: str, commands: Container[str], path: str) -> str:
    """Return the command that a misspelled word of another tool stands for; typer suggests those of fulltune."""
    meant = {word: command for command, words in reversed(_COMMANDS.items()) for word in words.split()}
    close = closest(name, [*meant, *(command.split()[0] for command in _COMMANDS)])
    command = meant.get(close, "")
    if not command or close in commands or command.split()[0] not in commands:
        return ""
    return f"No such command {name!r}: the command is `{path} {command}`."


def _is_config(name: str) -> bool:
    """Return True for a YAML file, or a JSON file with the keys of a config."""
    path = Path(name)
    if path.suffix.lower() in _CONFIGS:
        return True
    try:
        return path.suffix.lower() == ".json" and {'"task"', '"data"'} <= set(re.findall(r'"\w+"', path.read_text()))
    except (OSError, ValueError):
        return False


def _explain(error: Any) -> None:
    """Add advice to a usage error: on an option of another tool, or on a key without ``--set``."""
    option = str(getattr(error, "option_name", ""))
    extra = re.search(r"unexpected extra arguments?(?:\(s\))? \((.+)\)", str(error.message))
    if option and hasattr(error, "possibilities"):
        advice = _advice_on_option(option, error)
        error.possibilities = None if advice else error.possibilities
        error.message += advice
    elif extra and "=" in extra[1]:
        written = " ".join(f"--set {word}" for word in extra[1].split() if "=" in word)
        error.message += f". Keys of the config are set by options: {written}"


def _advice_on_option(option: str, error: Any) -> str:
    from fulltune.config import key_named

    known = {name for parameter in error.ctx.command.params for name in parameter.opts} if error.ctx else set()
    if option in _OPTIONS:
        return f". Instead, {_OPTIONS[option]}"
    key = key_named(option.lstrip("-").replace("-", "_"))
    return f". Write --set {key}=VALUE" if key and "--set" in known else ""
