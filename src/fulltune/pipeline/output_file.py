"""Write rows with their answers to a file: JSON Lines, CSV or Parquet, in constant memory, resumable after a kill.

Answers are appended to a journal (``answers.partial`` for ``answers.csv``) in blocks. When all rows are answered, the
input is read again, each row is joined with its answer, and the result replaces the file.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from fulltune.data.values import well_formed
from fulltune.errors import ConfigError, StoreError, did_you_mean
from fulltune.records.run import FileFormat
from fulltune.runtime import paths
from fulltune.runtime.files import advising, atomic, check_name, store_errors, to_json

#: A row of the output: the columns of the input, and those of its answer.
OutputRow = Mapping[str, Any]

#: What to do if the output cannot be written.
_ADVICE = "choose another file with --output"

#: Rows that are converted to Parquet at a time.
_BATCH = 10_000

_FORMATS = {".jsonl": "JSON Lines", ".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet"}


def check_output(path: Path, *, force: bool, source: object = None) -> None:
    """Check that answers can be written to a file, before anything is computed.

    Args:
        path: The file.
        force: It may exist.
        source: The rows that are answered, as a user names them; the fix for a suffix proposes the suffix of these.

    Raises:
        ConfigError: The suffix is no known format, the name is invalid, or the file exists.
    """
    if "\0" in str(path):
        fix = "remove the NUL character"
        raise ConfigError("the path is not valid", expected="a file", fix=fix, where=ascii(str(path)), field="--output")
    with advising(_ADVICE):
        check_name(path)
    if path.suffix not in _FORMATS:
        expected = ", ".join(f"{suffix} ({name})" for suffix, name in _FORMATS.items())
        fix = did_you_mean(path.suffix, list(_FORMATS)) or f"name it {path.stem}{_known_suffix(source)}"
        found = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise ConfigError(found, expected=expected, fix=fix, where=str(path), field="--output")
    if paths.is_folder(path):
        raise ConfigError(
            "this is a folder", expected="a new file", fix="name a file in it", where=str(path), field="--output"
        )
    if paths.exists(path) and not force:
        fix = "name another file, or replace it with --force (in Python: force=True)"
        raise ConfigError("the file exists", expected="a new file", fix=fix, where=str(path), field="--output")


def _known_suffix(source: object) -> str:
    """Return the suffix of the file, or of the first one, if answers can have it; else that of JSON Lines."""
    first = source[0] if isinstance(source, list | tuple) and source else source
    suffix = Path(first).suffix.lower() if isinstance(first, str | Path) else ""
    return suffix if suffix in _FORMATS else ".jsonl"


class Journal:
    """Answers of an unfinished file, in the order of the rows; a block is written at once.

    Attributes:
        path: The file. Its first line states what the answers depend on.
        done: Number of rows that are answered: a multiple of the block, or all rows.
    """

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        self.done = done

    @advising(_ADVICE)
    def append(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Append the answers of a block."""
        lines = [to_json(answer) for answer in answers]
        with store_errors(self.path), self.path.open("ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
        self.done += len(lines)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the answers of all rows."""
        with store_errors(self.path), self.path.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                yield json.loads(line)


@contextmanager
def open_journal(output: Path, key: Mapping[str, Any], block: int, *, force: bool) -> Iterator[Journal]:
    """Open the journal of a file, and lock it; an interrupted one is continued after its last complete block.

    Blocks are complete, so that a resumed call forms the same batches as one that was not interrupted.

    Args:
        output: The file that will be written.
        key: Everything that the answers depend on: model, input, options.
        block: Number of rows per block.
        force: Discard the answers of another model or input.

    Raises:
        ConfigError: An interrupted call had another model, input or options.
        StoreError: The file cannot be written, or another process writes it.
    """
    path = output.with_suffix(".partial")  # for all formats, so that another one can be written from the same answers
    with advising(_ADVICE), store_errors(path):
        output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    with advising(_ADVICE), store_errors(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not paths.exists(lock.lock_file):  # a folder such as /proc, in which no file can be created
                raise StoreError("cannot be written", where=str(output), fix="name a file in another folder") from None
            raise StoreError("another process writes this file", where=str(output), fix="wait for it to end") from None
    try:
        yield Journal(path, _resumed(path, to_json(key), block, output, force=force))
    finally:
        # Removed while it is held: another process would not notice that a lock it has just taken is on a removed file.
        with suppress(OSError):  # Windows keeps a file that is open
            Path(f"{path}.lock").unlink()
        lock.release()


@advising(_ADVICE)
def _resumed(path: Path, key: str, block: int, output: Path, *, force: bool) -> int:
    """Return the number of rows that an interrupted journal has; its incomplete block is removed."""
    with store_errors(path):
        if path.exists():
            with path.open("rb") as file:
                if file.readline() == key.encode() + b"\n":
                    done, size = _complete_blocks(file, block)
                    with path.open("r+b") as written:
                        written.truncate(size)
                    return done
            if not force:
                raise ConfigError(
                    "answers of an interrupted call with another model, input or option",
                    expected="the same call again, which resumes it",
                    fix="repeat that call, name another --output, or discard them with --force",
                    where=str(path),
                )
        path.write_bytes(key.encode() + b"\n")
    return 0


def _complete_blocks(file: io.BufferedReader, block: int) -> tuple[int, int]:
    """Return the number of rows in complete blocks after the current position, and the size of the file up to them."""
    size = file.tell()
    done = 0
    while lines := list(islice(file, block)):
        if len(lines) < block or not lines[-1].endswith(b"\n"):
            break
        done += block
        size += sum(map(len, lines))
    return done, size


#: Codecs that need no mark.
_PLAIN = ("utf-8", "ascii")


class Dialect(NamedTuple):
    """The delimiter and the byte-order mark of a CSV file.

    Attributes:
        delimiter: Character between cells.
        bom: True for a byte-order mark, by which a spreadsheet recognizes UTF-8.
    """

    delimiter: str = ","
    bom: bool = False

    @classmethod
    def of(cls, forms: Iterable[FileFormat], *, has_mark: bool) -> Dialect:
        """Return the dialect by which the program that wrote the input reads the output.

        The delimiter is that of the input if all of it is CSV with the same one. A file in plain UTF-8 is read by a
        program that needs no mark; any other encoding, a mark, or a workbook comes from a spreadsheet, which does.
        """
        read = list(forms)
        delimiters = {form.delimiter if form.format == "csv" else "" for form in read}
        delimiter = delimiters.pop() if len(delimiters) == 1 else ""
        codecs_read = {codecs.lookup(form.encoding).name for form in read if form.encoding}
        foreign = bool(codecs_read.difference(_PLAIN)) or any(form.format == "excel" for form in read)
        return cls(delimiter or ",", has_mark or foreign)


@advising(_ADVICE)
def write_rows(
    path: Path, columns: Sequence[str], rows: Callable[[], Iterable[OutputRow]], dialect: Dialect | None = None
) -> None:
    """Write rows to a file in the format of its suffix; the file is replaced when all are written.

    Args:
        path: The file.
        columns: Names of all columns; a row may lack some.
        rows: Returns the rows; it is called twice for Parquet, which needs the type of every column first.
        dialect: The form of CSV: by default commas and no mark. TSV always has tabs.

    Raises:
        StoreError: The disk is full or read-only, or a column has values of several types, in Parquet.
    """
    if path.suffix == ".jsonl":
        _write_json_lines(path, rows())
    elif path.suffix == ".parquet":
        _write_parquet(path, columns, rows)
    else:
        dialect = dialect or Dialect()
        _write_csv(path, columns, rows(), dialect._replace(delimiter="\t") if path.suffix == ".tsv" else dialect)


def json_line(row: object) -> str:
    """Return a row, or a value of it, as one line of JSON; dates and other values without a JSON type become text."""
    try:
        return to_json(row)
    except StoreError:
        return json.dumps(row, default=str)  # texts that are not well-formed Unicode


def _write_json_lines(path: Path, rows: Iterable[OutputRow]) -> None:
    with atomic(path) as write:
        for row in rows:
            write(f"{json_line(row)}\n".encode())


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[OutputRow], dialect: Dialect) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, delimiter=dialect.delimiter, lineterminator="\n")
    with atomic(path) as write:
        if dialect.bom:
            write(codecs.BOM_UTF8)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})
            write(buffer.getvalue().encode("utf-8", "backslashreplace"))
            buffer.seek(0)
            buffer.truncate()


def _cell(value: Any) -> Any:
    """Return a value for a CSV cell: lists and objects as JSON."""
    return json_line(value) if isinstance(value, (list, tuple, dict)) else value


def _write_parquet(path: Path, columns: Sequence[str], rows: Callable[[], Iterable[OutputRow]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schemas = (_table(batch, columns).schema for batch in _batches(rows()))
        schema = pa.unify_schemas(list(dict.fromkeys(schemas)), promote_options="permissive")
        with atomic(path) as write, pq.ParquetWriter(_Sink(write), schema) as writer:
            for batch in _batches(rows()):
                writer.write_table(_table(batch, columns).cast(schema))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise StoreError(
            f"a column with values of several types ({str(error).splitlines()[0]})",
            expected="one type per column, which Parquet needs",
            fix="repeat the call with a name that ends in .jsonl or .csv",
            where=str(path),
        ) from None


def _table(batch: Sequence[OutputRow], columns: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.table({name: [_well_formed(row.get(name)) for row in batch] for name in columns})


def _well_formed(value: Any) -> Any:
    """Return a text without lone surrogates, which Parquet cannot store; any other value as it is."""
    return well_formed(value) if isinstance(value, str) else value


def _batches(rows: Iterable[OutputRow]) -> Iterator[list[OutputRow]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


class _Sink(io.RawIOBase):
    """A binary file that only writes."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(bytes(data))
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size
