"""Data, models and file names cannot control a terminal, and no encoding of a stream breaks the output."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from matrix import often
from rich.table import Table
from rich.text import Text

from fulltune.cli import options
from fulltune.errors import DataError
from fulltune.runtime.progress import open_progress
from fulltune.runtime.terminal import (
    escape_controls,
    portable_json,
    replace_unknown_characters,
    wrapping_table,
    write_line,
)

EVIL = "\x1b]0;PWN\x07\x1b[31mred\x1b[2J \x9b31m \u202eabc\u2066 [bold]b[/bold] [/x] :smile: \ud800 \r up"
HARMFUL = ("\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\ud800", "\r")


def test_control_characters_are_written_as_escapes() -> None:
    assert escape_controls("a\x1b[31mb\u202ec\td\ne\r\nf") == "a\\x1b[31mb\\u202ec\td\ne\nf"
    assert escape_controls("Привет, שלום, 👩‍👩‍👧 é") == "Привет, שלום, 👩‍👩‍👧 é"


def test_an_answer_shows_texts_verbatim_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("system", EVIL)
    table.add_row(EVIL, Text(EVIL))
    options.Common().answer("{}", table)
    shown = capsys.readouterr().out
    assert [one for one in HARMFUL if one in shown] == []
    assert "\\x1b" in shown
    assert "[bold]" in shown
    assert "[/x]" in shown
    assert ":smile:" in shown


def test_json_answers_keep_their_value(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": EVIL.replace("\ud800", ""), "other": "é 👍 \x7f"}
    options.Common(as_json=True).answer(json.dumps(value, ensure_ascii=False), "")
    shown = capsys.readouterr().out
    assert json.loads(shown) == value
    assert [one for one in HARMFUL if one in shown] == []
    for encoding in ("ascii", "cp1252", "utf-8", None):
        text = portable_json(json.dumps(value, ensure_ascii=False), encoding)
        assert json.loads(text) == value
        assert encoding == "utf-8" or text.isascii()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("as_json", [False, True])
def test_an_answer_that_cannot_be_written_is_an_error(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(options.typer.Exit) as stopped:
            options.Common(as_json=as_json).answer("{}", "an answer")
    assert stopped.value.exit_code == 1
    assert capsys.readouterr().err.startswith("error: stdout cannot be written (No space left on device).")


@pytest.mark.parametrize("columns", ["", "0", "00"])
def test_a_terminal_without_a_width_shows_the_answer(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    options.Common().answer("{}", "an answer of several words")
    assert capsys.readouterr().out == "an answer of several words\n"


def test_a_table_keeps_its_numbers_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    table = wrapping_table("system", "score", "difference", "interval", "p", "verdict")
    table.add_row("A", "1.5", "2.5", "3.5", "4.5", "no")
    options.Common().answer("{}", table)
    shown = capsys.readouterr().out
    assert all(number in shown for number in ("1.5", "2.5", "3.5", "4.5"))


def test_an_error_is_shown_and_its_json_is_valid_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(options.typer.Exit), options.Common(as_json=True).answering():
        raise DataError(EVIL, field=EVIL)
    shown = capsys.readouterr()
    assert [one for one in HARMFUL if one in shown.out + shown.err] == []
    assert json.loads(shown.out)["error"]["problems"][0]["found"] == EVIL


def test_a_path_that_the_system_refuses_is_named_and_a_missing_file_of_ours_stays_a_bug(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(options.typer.Exit), options.Common().answering():
        raise PermissionError(errno.EACCES, "Permission denied", "shut/run")
    assert capsys.readouterr().err.startswith(
        "error: shut/run: cannot be used (Permission denied). This user has no right to it or to a folder above it"
    )
    with pytest.raises(FileNotFoundError), options.Common().answering():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "ours")


def test_a_current_folder_that_is_gone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(gone)
        gone.rmdir()
        with pytest.raises(options.typer.Exit), options.Common().answering():
            Path("model").absolute()  # as torch does while it is imported
    message = "error: the current folder was deleted or moved; expected a folder. Change to another one: `cd`."
    assert capsys.readouterr().err.startswith(message)


def test_progress_shows_names_and_notes_verbatim() -> None:
    stream = io.StringIO()
    progress = open_progress(stream=stream)
    with progress.stage(EVIL, total=1) as bar:
        bar.advance(note=EVIL)
    progress.note(EVIL)
    assert [one for one in HARMFUL if one in stream.getvalue()] == []


def test_a_closed_reader_stops_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        for _ in range(3):
            write_line(stream, "line")
    write_line(None, "line")


ANSWER = """
import sys
from rich.text import Text
from fulltune.cli import main as cli
from fulltune.cli.options import Common
cli.replace_unknown_characters()
Common(as_json=sys.argv[1] == "json").answer('{"a": "Привет → é"}', Text("Привет → é"))
"""


@pytest.mark.parametrize(
    "encoding", often(["ascii", "cp1252", "latin-1", "cp866", "utf-8"], {"ascii", "cp866"}.__contains__)
)
@pytest.mark.parametrize("kind", ["json", "text"])
def test_any_encoding_of_stdout_works(encoding: str, kind: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", ANSWER, kind], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    if kind == "json":
        assert json.loads(done.stdout.decode(encoding)) == {"a": "Привет → é"}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
def test_numbers_keep_their_sign_in_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    replace_unknown_characters()
    stream.write("0.5 → −0.2, Я")
    stream.flush()
    assert cast(io.BytesIO, stream.buffer).getvalue().decode(encoding) == "0.5 -> -0.2, ?"


def test_an_encoding_of_host_names_is_replaced_by_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="idna")
    monkeypatch.setattr(sys, "stdout", stream)
    replace_unknown_characters()
    stream.write("0.5 → −0.2, Я")
    stream.flush()
    assert cast(io.BytesIO, stream.buffer).getvalue().decode() == "0.5 → −0.2, Я"


def test_a_closed_stdout_and_a_closed_pipe_exit_cleanly(tmp_path: Path) -> None:
    program = [sys.executable, "-c", ANSWER.replace("Common(", "for _ in range(2000): Common("), "text"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr is not None
        errors = running.stderr.read()
        assert (running.wait(timeout=60), errors) == (0, b"")
