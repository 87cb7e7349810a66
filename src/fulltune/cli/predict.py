"""``fulltune predict``: answer the rows of a file."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

import fulltune
from fulltune.cli.options import Common, Overrides, TaskConfig, refuse_unread, unwritable_stdout, with_common_options
from fulltune.errors import DataError, StoreError
from fulltune.runtime.terminal import discard_output


@with_common_options
def predict(
    common: Common,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run, `latest`, a version (NAME@3), a baseline (latest#tfidf), any model."
        ),
    ],
    data: Annotated[
        list[str], typer.Argument(metavar="DATA…", help="Files, a folder or a pattern with rows; `-` reads stdin.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help=".jsonl, .csv, .tsv or .parquet; default: JSONL on stdout."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace that file, and discard an interrupted call with other arguments.")
    ] = False,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="TEXT", help="Begins the names of the added columns.")
    ] = "",
    database: Annotated[
        str, typer.Option("--db", metavar="NAME", help="text2sql: the database of rows without a db_id.")
    ] = "",
    execute: Annotated[
        bool, typer.Option("--execute", help="text2sql: run the queries, read-only, and add their rows.")
    ] = False,
    max_rows: Annotated[
        int, typer.Option("--max-rows", metavar="N", min=1, help="Result rows per query of --execute.")
    ] = 100,
    config: TaskConfig = None,
    overrides: Overrides = None,
) -> None:
    """Answer rows without labels, in their order, with all of their columns; an interrupted call resumes.

    Adds `prediction`, and by task `probabilities`, `text` or `sql`.

    `truncated` counts the tokens that were not read; `error` says why a row has no answer, `sql_error` why a query
    cannot be run; `sql_warning` names values of a query that occur neither in the question nor in their column.
    """
    from fulltune.cli.render import answers

    if output is None:
        refuse_unread("with --output", force=force)
    if output is None and common.as_json:
        raise typer.BadParameter("the rows go to stdout: name a file for them", param_hint="--json")
    if "-" in data and len(data) > 1:
        raise typer.BadParameter("`-` is read alone", param_hint="DATA")
    stdout = sys.stdout
    with common.answering() as progress, _named(data) as names:
        found = fulltune.predict(
            model,
            names,
            output=output or _Unbroken(stdout),
            config=config,
            out=common.out,
            overrides=overrides or (),
            database=database,
            execute=execute,
            max_rows=max_rows,
            prefix=prefix,
            force=force,
            progress=progress,
        )
        if output is None:
            progress.note(answers.predictions_line(found))
            if found.warning:
                progress.note(found.warning)
    if output is not None:
        common.answer(found.to_json(), answers.predictions(found))
    if found.total and not found.answered:
        raise typer.Exit(1)


@contextmanager
def _named(data: list[str]) -> Iterator[list[str]]:
    """Yield the names of the data; stdin is stored in a file that is deleted afterwards, since rows are read twice."""
    if data != ["-"]:
        yield data
        return
    with tempfile.TemporaryDirectory() as folder:
        head = b"" if sys.stdin is None else sys.stdin.buffer.read(1 << 16)  # None if it is closed
        if not head.strip():
            raise DataError("nothing on stdin", expected="rows", fix="pipe a file into the command", where="-")
        is_json = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")
        path = Path(folder) / f"stdin.{'jsonl' if is_json else 'csv'}"
        with path.open("wb") as file:
            file.write(head)
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield [str(path)]


class _Unbroken:
    """A stream that stays silent once its reader has gone, as in ``fulltune predict … | head``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write a text, and send it at once."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            discard_output(self._stream)
            raise typer.Exit(0) from None
        except OSError as error:
            discard_output(self._stream)
            raise StoreError(unwritable_stdout(error), fix="redirect it to another file") from None
