"""The command line: what goes to stdout, what goes to stderr, and the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import fulltune
from fulltune.cli import layout as layouts
from fulltune.cli.main import app, entry
from fulltune.errors import Problem
from fulltune.runtime.config_file import to_yaml
from fulltune.runtime.terminal import wait_for_readers
from fulltune.store.runs import RunFolder

VERBS = (
    *("init", "run", "plan", "evaluate", "predict", "serve", "export", "compare", "verdict"),
    *("demo", "doctor", "lr-find", "methods", "sweep", "launch"),
)
#: Commands that have subcommands.
GROUPS = {
    "models": (
        *("list", "show", "promote", "rollback", "verify", "export", "apply-delta", "gc", "register", "interpolate"),
        "soup",
    )
}


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_config(folder: Path, **changes: Any) -> Path:
    raw = {"model": "gpt2", "task": "causal-lm", "data": {"train": "tales.jsonl"}} | changes
    path = folder / "config.yaml"
    path.write_text(to_yaml(raw))
    return path


def in_a_process(*arguments: str, torch: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the console script with a ``torch`` module of this source text."""
    (folder / "torch.py").write_text(torch)
    path = os.pathsep.join([str(folder), *sys.path])
    command = [sys.executable, "-m", "fulltune", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environment)


def test_warnings_for_users_name_no_line_of_the_source_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fulltune", "--help"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit):
        entry()
    shown = warnings.formatwarning("1 of 150 queries fails\x1b[2J", UserWarning, "dataset.py", 125)
    assert shown == "Warning: 1 of 150 queries fails\\x1b[2J\n"
    assert "dataset.py:125" in warnings.formatwarning("old", DeprecationWarning, "dataset.py", 125)


def test_help_names_every_verb() -> None:
    shown = call("--help")
    assert shown.exit_code == 0
    assert all(verb in shown.stdout for verb in (*VERBS, *GROUPS))
    commands = typer.main.get_command(app)
    assert set(getattr(commands, "commands")) == {*VERBS, *GROUPS}  # noqa: B009 - typer does not declare the type


@pytest.mark.parametrize("verb", [*VERBS, *(f"{group} {verb}" for group, verbs in GROUPS.items() for verb in verbs)])
def test_every_verb_has_help_and_json(verb: str) -> None:
    shown = call(*verb.split(), "--help")
    assert shown.exit_code == 0
    assert "--json" in shown.stdout


@pytest.mark.parametrize(("group", "layout"), [((), layouts.PROGRAM), (("models",), layouts.MODELS)])
def test_help_shows_every_command_in_the_order_of_use_with_an_example(
    group: tuple[str, ...], layout: layouts.Layout
) -> None:
    command: Any = typer.main.get_command(app)
    for name in group:
        command = command.commands[name]
    order = [name for names in layout.values() for name in names if name in command.commands]
    assert command.list_commands(None) == order
    shown = call(*group, "-h").stdout
    places = [shown.index(f"│ {name} ") for name in order]
    assert places == sorted(places)
    for name in order:
        example = layouts.example_of(layout, name)
        assert example
        assert f"Example: {example}" in " ".join(call(*group, name, "-h").stdout.split())
        assert example.split()[: len(group) + 2] == ["fulltune", *group, name]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("check the path", "Check the path"),
        ("don't", "Don't"),
        ("remove it; or set a key", "Remove it; or set a key"),
        ("pip install gguf", "pip install gguf"),
        ("data.databases is a folder", "data.databases is a folder"),
        ("--out sets the folder", "--out sets the folder"),
        ("`git lfs pull`", "`git lfs pull`"),
        ("max_length is 5", "max_length is 5"),
    ],
)
def test_identifiers_and_commands_keep_their_case_at_the_start_of_a_sentence(text: str, shown: str) -> None:
    assert str(Problem("wrong", fix=text)) == f"wrong. {shown}."


def test_version() -> None:
    assert call("--version").stdout == f"{fulltune.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [("rum",), ("run",), ("run", "c.yaml", "--no-such"), ("compare", "one"), ("doctor", "extra")]
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "options", "reason"),
    [
        ("run c.yaml --allow-changed", ("--allow-changed",), "only with --resume"),
        ("run c.yaml --seeds 3 --allow-changed", ("--allow-changed",), "only with --resume"),
        ("compare one two --db zoo", ("--db",), "only with --ask"),
        ("compare one two --config c.yaml --set train.epochs=1", ("--config", "--set"), "only with --ask"),
        ("compare one --data --db zoo", ("--db",), "only with --ask"),
        ("compare one --ask why --data", ("--data",), "only without --ask"),
        ("doctor --steps 8", ("--steps",), "only with --resume"),
        ("doctor --steps 0 --set train.epochs=1", ("--steps", "--set"), "only with --resume"),
        ("predict one rows.jsonl --force", ("--force",), "only with --output"),
        ("models export one --to two --private", ("--private",), "only with --push"),
    ],
)
def test_options_that_a_call_would_not_read_are_refused(words: str, options: tuple[str, ...], reason: str) -> None:
    result = call(*words.split())
    shown = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"Invalid value for {' and '.join(options)}: read {reason}" in shown


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_a_missing_config_is_one_clear_message(verb: str, tmp_path: Path) -> None:
    result = call(verb, tmp_path / "nothing.yaml", "--out", tmp_path / "runs")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == f"error: {tmp_path / 'nothing.yaml'}: the config file does not exist. Check the path.\n"
    assert not (tmp_path / "runs").exists()


def test_json_errors_also_go_to_stdout(tmp_path: Path) -> None:
    config = write_config(tmp_path, modle="x", train={"epocs": 1})
    result = call("run", config, "--out", tmp_path / "runs", "--json", "--quiet")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "ConfigError"
    assert [problem["field"] for problem in error["problems"]] == ["train.epocs", "modle"]
    assert "2 problems" in error["message"]
    assert "did you mean 'epochs'" in error["problems"][0]["fix"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "expected a.b=value"),
        ("train.epochs=-1", "more than 0"),
        ("train.lr=1", "unknown key"),
        ("task=causal-lmm", "Did you mean 'causal-lm'"),
        ("method=ful", "Did you mean 'full'"),
    ],
)
def test_overrides_are_checked(override: str, message: str, tmp_path: Path) -> None:
    result = call("run", write_config(tmp_path), "--set", override, "--out", tmp_path / "runs")
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("switch", ["--verbose", "FULLTUNE_DEBUG"])
def test_a_traceback_only_on_request(switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [switch] if switch.startswith("-") else []
    if not options:
        monkeypatch.setenv(switch, "1")
    result = call("run", tmp_path / "nothing.yaml", *options)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("Check the path.\n")


def test_an_unknown_demo_lists_those_that_exist(tmp_path: Path) -> None:
    result = call("demo", "contract", "--out", tmp_path)
    assert result.exit_code == 1
    assert "expected one of contracts, tales" in result.stderr
    assert "Did you mean 'contracts'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_comparing_missing_runs(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "20260101-a"):
        pass
    result = call("compare", "20260101-b", "latest", "--out", tmp_path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["type"] == "StoreError"
    assert "Did you mean '20260101-a'" in result.stderr


def test_doctor_for_people_and_for_programs(tmp_path: Path) -> None:
    shown = call("doctor", "--out", tmp_path)
    assert shown.exit_code == 0
    assert fulltune.__version__ in shown.stdout
    assert "fused AdamW" in shown.stdout
    parsed = json.loads(call("doctor", "--json", "--out", tmp_path).stdout)
    assert parsed["versions"]["fulltune"] == fulltune.__version__


def test_the_end_of_a_command_before_a_prompt_is_no_bug(capfd: pytest.CaptureFixture[str]) -> None:
    subprocess.run([sys.executable, "-i", "-m", "fulltune", "--version"], stdin=subprocess.DEVNULL, check=False)
    said = capfd.readouterr()
    assert said.out.startswith(fulltune.__version__)
    assert "Traceback" not in said.err
    assert "bug" not in said.err


def test_a_bug_shows_its_traceback_and_asks_for_a_report(tmp_path: Path) -> None:
    done = in_a_process("doctor", torch="raise ZeroDivisionError('ours')", folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith(
        "ZeroDivisionError: ours\nerror: this is a bug in fulltune; please report it with the lines above.\n"
    )
    assert done.stdout == ""


def test_a_variable_that_a_package_cannot_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TIMEOUT", "abc")
    reading = "    int(os.environ['SOME_TIMEOUT'])\nexcept ValueError as error:\n    raise ImportError() from error"
    done = in_a_process("doctor", "--json", torch=f"import os\ntry:\n{reading}", folder=tmp_path)
    assert done.returncode == 1
    assert "environment variable SOME_TIMEOUT: 'abc', which cannot be read (invalid literal" in done.stderr
    assert "unset SOME_TIMEOUT" in json.loads(done.stdout)["error"]["problems"][0]["fix"]
    assert "Traceback" not in done.stderr


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    done = in_a_process("doctor", torch="raise ImportError('libtorch_cpu.so: file too short')", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: torch cannot be imported (libtorch_cpu.so: file too short); expected")
    assert "Traceback" not in done.stderr


def test_ctrl_c_exits_with_130(tmp_path: Path) -> None:
    done = in_a_process("doctor", "--json", torch="raise KeyboardInterrupt", folder=tmp_path)
    assert done.returncode == 130
    assert done.stderr == "error: interrupted\n"
    assert json.loads(done.stdout)["error"]["type"] == "KeyboardInterrupt"


def test_ctrl_c_while_modules_are_imported_exits_with_130(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    done = in_a_process("doctor", torch="", folder=tmp_path)
    assert (done.returncode, done.stderr) == (130, "")


def test_what_libraries_print_does_not_reach_stdout(tmp_path: Path) -> None:
    done = in_a_process("doctor", "--json", torch="print('chatter')\nraise KeyboardInterrupt", folder=tmp_path)
    assert "chatter" in done.stderr
    assert list(json.loads(done.stdout)) == ["error"]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("latest", "base", "--data"), "fulltune compare base latest --data"),
        (("tuned", "base", "--data"), "fulltune compare base latest --data"),
        (("20260101-b", "base"), "fulltune compare base 20260101-b --data"),
        (("base", "tuned"), "fulltune compare base latest --data"),
    ],
)
def test_comparing_base_and_tuned_in_an_unsupported_order_names_the_supported_command(
    arguments: tuple[str, ...], advice: str, tmp_path: Path
) -> None:
    result = call("compare", *arguments, "--out", tmp_path)
    assert result.exit_code == 2
    assert advice in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_cannot_be_written_is_an_error_without_a_traceback(option: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "fulltune", option]
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: stdout cannot be written (No space left on device).")
    assert len(done.stderr.splitlines()) == 1


def test_a_slow_reader_of_a_pipe_that_does_not_block_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(reader), os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        wait_for_readers()
        assert os.get_blocking(writer)


def test_a_folder_whose_name_is_too_long_is_refused_at_once() -> None:
    done = call("models", "list", "--out", "x" * 300)
    assert done.exit_code == 1
    assert "the name is too long" in done.stderr.lower()
