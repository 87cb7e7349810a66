"""`fulltune serve` as a process: what it refuses at once, how it starts, and how it ends."""

from __future__ import annotations

import importlib
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner, Result

import fulltune
from fulltune.cli.main import app
from fulltune.runtime import extras


@pytest.fixture
def config(classifier_folder: Path, tmp_path: Path) -> Path:
    rows = str(classifier_folder / "rows.jsonl")
    values: dict[str, Any] = {"model": str(classifier_folder / "model"), "task": "classification"}
    values["data"] = {"train": rows, "eval": rows, "text": "body", "allow_leaks": True}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return tmp_path / "config.json"


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def test_sigterm_finishes_the_request_that_has_begun(config: Path, classifier_folder: Path, tmp_path: Path) -> None:
    words = ["serve", str(classifier_folder / "model"), "--config", str(config), "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fulltune", *words, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        clock = threading.Timer(300, process.kill)
        clock.start()
        state = json.loads(process.stdout.readline())
        assert (state["model"], state["task"]) == (str(classifier_folder / "model"), "classification")
        place = urlsplit(state["url"])
        assert place.hostname == "127.0.0.1"
        body = json.dumps({"inputs": ["a film"]}).encode()
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        with socket.create_connection((place.hostname, place.port or 0), timeout=60) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")
            process.send_signal(signal.SIGTERM)
            while _accepts(place.hostname, place.port or 0):
                pass
            connection.sendall(body)
            answer = b""
            while part := connection.recv(10_000):
                answer += part
        _, log = process.communicate(timeout=60)
        clock.cancel()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"prediction"' in answer
    assert (process.returncode, "Traceback" in log) == (0, False)
    assert "answers at http://127.0.0.1:" in log


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=60).close()
    except ConnectionError:
        return False
    return True


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org", "::"])
def test_another_host_needs_a_token(host: str) -> None:
    result = command("any", "--host", host)
    assert result.exit_code == 1
    assert f"the host '{host}' can be reached by other machines" in result.stderr
    assert "add --token-file token" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the token cannot be read"),
        ("short\n", "a token of 5 characters; expected one word of at least 16 characters"),
        ("two words that are long enough", "a token of 30 characters; expected one word"),
        ("жжжжжжжжжжжжжжжж", "expected an ASCII text file"),
    ],
    ids=["missing", "short", "words", "not-ascii"],
)
def test_a_token_that_cannot_be_used_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content, encoding="utf-8")
    result = command("any", "--token-file", tmp_path / "token")
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_port_in_use_is_refused(config: Path, classifier_folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = command(classifier_folder / "model", "--config", config, "--port", port, "--out", tmp_path)
    assert result.exit_code == 1
    assert f"127.0.0.1:{port} cannot be used (Address already in use)" in result.stderr


def test_a_model_that_does_not_exist_is_refused(config: Path, tmp_path: Path) -> None:
    result = command("nothing", "--out", tmp_path)
    assert (result.exit_code, "'nothing' is neither a run nor a version" in result.stderr) == (1, True)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{}", encoding="utf-8")
    result = command(damaged, "--config", config, "--port", 0, "--out", tmp_path)
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr


def test_a_baseline_is_not_served(tmp_path: Path) -> None:
    result = command("latest#tfidf", "--out", tmp_path)
    assert result.exit_code == 1
    assert "the baseline 'tfidf' of latest; expected a model to serve" in result.stderr
    assert "`fulltune predict latest#tfidf FILE`" in result.stderr


def test_options_of_text2sql_need_that_task(config: Path, classifier_folder: Path, tmp_path: Path) -> None:
    result = command(classifier_folder / "model", "--config", config, "--execute", "--out", tmp_path)
    assert result.exit_code == 1
    assert "the task classification; expected text2sql for --execute and --db" in result.stderr


def test_limits_are_checked_together() -> None:
    result = command("any", "--timeout", 0, "--queue", 5)
    assert result.exit_code == 1
    assert "field 'seconds': 0.0; expected a positive number" in result.stderr
    assert "a queue of 5; expected at least 256 inputs" in result.stderr


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    result = command("any")
    assert result.exit_code == 1
    assert "a server needs uvicorn, which is not installed" in result.stderr
    assert extras.install("serve") in result.stderr


def test_help_and_the_package_load_no_server() -> None:
    code = (
        "import sys, fulltune; from typer.testing import CliRunner; from fulltune.cli.main import app\n"
        "print(CliRunner().invoke(app, ['serve', '--help']).exit_code, 'fastapi' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]


def test_the_package_is_callable_whatever_was_imported_first() -> None:
    for serve in (fulltune.serve, importlib.import_module("fulltune.serve")):
        with pytest.raises(fulltune.ConfigError, match="can be reached by other machines"):
            serve("any", host="0.0.0.0")
