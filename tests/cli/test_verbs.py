"""Commands, files and options that do not exist are answered with those that were probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fulltune.cli.main import app
from fulltune.cli.verbs import advice_on_verb


def refused(*words: str) -> str:
    """Return the error of a wrong command line in one line."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 2
    assert result.stdout == ""
    return " ".join(line.strip("│ ") for line in result.stderr.splitlines() if line.startswith("│"))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("train c.yaml", "run CONFIG"),
        ("Fine_Tune c.yaml", "run CONFIG"),
        ("eval latest", "evaluate MODEL"),
        ("check c.yaml", "plan CONFIG"),
        ("new rows.csv", "init DATA"),
        ("hpo c.yaml", "sweep CONFIG --over KEY=LOW..HIGH"),
        ("ask latest", "compare base tuned --ask TEXT"),
        ("upload clauses", "models export NAME"),
        ("ls", "models list"),
        ("help", "--help"),
        ("models ls", "list"),
        ("models delete clauses", "gc"),
    ],
)
def test_commands_of_other_tools(words: str, command: str) -> None:
    first = words.removeprefix("models ").split()[0]
    assert f"No such command '{first}': the command is `" in refused(*words.split())
    assert refused(*words.split()).endswith(f"{command}`.")


def test_a_command_is_only_named_if_it_exists() -> None:
    assert "`fulltune predict MODEL DATA`" in advice_on_verb("infer", [], {"predict", "compare", "run"})
    assert "`fulltune compare base tuned" in advice_on_verb("infer", [], {"compare", "run"})
    assert advice_on_verb("infer", [], {"list"}) == ""


@pytest.mark.parametrize(
    ("word", "command"), [("tran", "run CONFIG"), ("finetun", "run CONFIG"), ("evaluat", ""), ("qwertz", "")]
)
def test_misspelled_commands_of_other_tools(word: str, command: str) -> None:
    message = refused(word, "c.csv")
    assert message.startswith(f"No such command '{word}'")
    assert ("the command is `" in message) == bool(command)
    assert message.endswith(f"{command}`." if command else "Did you mean 'evaluate'?" if word == "evaluat" else ".")


def test_misspelled_commands() -> None:
    assert "Did you mean 'run'?" in refused("rnu", "c.yaml")
    assert "Did you mean 'show'?" in refused("models", "sshow")


def test_a_config_or_data_without_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.json").write_text('{"model": "m", "task": "classification", "data": {"train": "x"}}')
    Path("rows.json").write_text('[{"text": "a"}]')
    Path("tales").mkdir()
    for config in ("c.yaml", "job.json"):
        assert f"A command is missing: `fulltune run {config} --quiet` trains" in _command(refused(config, "--quiet"))
    for data in ("rows.csv", "rows.json", "tales"):
        assert f"`fulltune init {data}` writes a config for this data" in _command(refused(data))


def _command(text: str) -> str:
    return text.replace("`root ", "`fulltune ")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("--epochs 3", "Write --set train.epochs=VALUE"),
        ("--lr 3e-5", "Write --set train.learning_rate=VALUE"),
        ("--per_device_train_batch_size 8", "Write --set train.batch_size=VALUE"),
        ("--task classification", "Write --set task=VALUE"),
        ("--output_dir x", "Instead, use --out DIR"),
        ("--sett a=1", "Possible options: --quiet, --seeds, --set"),
        ("train.epochs=1 lr=2", "set by options: --set train.epochs=1 --set lr=2"),
    ],
)
def test_options_of_other_tools_and_keys_without_set(words: str, advice: str) -> None:
    assert advice in refused("run", "c.yaml", *words.split())


def test_a_config_as_an_option() -> None:
    assert "Instead, write the config without an option: fulltune run CONFIG" in refused("plan", "--config", "c.yaml")
    assert refused("models", "list", "--lr", "3").startswith("No such option: --lr")
    assert "--set" not in refused("models", "list", "--lr", "3")
