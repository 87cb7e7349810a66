"""Read config files and values: YAML, or JSON in a file called ``.json``.

Reading is bounded in time and memory, and nothing is guessed: a key that is written twice, a key that is no text, and a
number in a notation that hardly anybody means (``0777`` is octal, ``1:30`` counts in sixties) are problems, with their
lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fulltune.errors import ConfigError, Problem, shortened
from fulltune.runtime.json_syntax import json_fault, unreadable
from fulltune.runtime.paths import check_regular_file

#: Bytes of a config file. The parser reads about 100 kB a second.
MAX_BYTES = 256 * 1024

#: Values of a config, with aliases written out, and how deep they may be nested.
MAX_VALUES = 20_000
MAX_DEPTH = 40

#: Suffixes of files that hold rows.
_ROWS = frozenset({".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"})

_KINDS: tuple[tuple[type, str], ...] = (
    (type(None), "an empty file"),
    (list, "a list"),
    (str, "plain text"),
    (bool, "a truth value"),
)

#: What the parser says, by a part of it, and what to do about it.
_SYNTAX = (
    (r"character '\t'", "a tab ('\\t') at the beginning of a value", "indent with spaces"),
    ("mapping values are not allowed", "a `:` in the middle of a value", "correct the indentation, or quote the text"),
    ("could not find expected ':'", "a line that is no `key: value`", "write a space after the colon"),
    ("document start", "a line that is no `key: value`", "write every key as `key: value`"),
    ("block end", "a line whose indentation fits no section", "align it with the keys next to it"),
    ("unexpected end of stream", "a quote that is never closed", "close it"),
    ("escape", "a backslash in double quotes that begins no escape", "use single quotes, or / in paths"),
    ("undefined alias", "an undefined alias (a value that begins with *)", "put the text in quotes"),
    ("or ']'", "a bracket that is not closed, or a comma that is missing", "close it: [a, b], {a: 1}"),
    ("or '}'", "a bracket that is not closed, or a comma that is missing", "close it: [a, b], {a: 1}"),
    ("flow", "a bracket that is not closed, or a comma that is missing", "close it: [a, b], {a: 1}"),
    ("cannot start any token", "a sign that begins no value", "put the text in quotes"),
)

_FALSE_FRIENDS = (
    (re.compile(r"[-+]?0[0-7_]+"), "an octal number: a decimal one has no leading 0"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "a number in base 60: put it in quotes"),
)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping that a config file holds.

    Raises:
        ConfigError: The file cannot be read, is too large, is not YAML or JSON, holds something other than a mapping,
            or has ambiguous keys and values. All of the latter at once.
    """
    text = _text(path)
    if path.suffix.lower() in _ROWS:
        fix = "name a config, whose data.train names this file"
        raise ConfigError("this is a file of rows", expected="a YAML or JSON config", where=str(path), fix=fix)
    raw = _from_json(text, str(path)) if path.suffix.lower() == ".json" else _from_yaml(text, str(path))
    if not isinstance(raw, dict):
        kind = next((words for kind, words in _KINDS if isinstance(raw, kind)), "a number")
        fix = "write `model: …`, `task: …` and `data: …` on lines of their own"
        raise ConfigError(f"found {kind}", expected="a mapping with model, task and data", where=str(path), fix=fix)
    check_size(raw, str(path))
    return raw


def read_value(text: str, where: str) -> Any:
    """Return one value written in YAML; text that is no YAML stands for itself.

    Raises:
        ConfigError: The value is ambiguous or too large.
    """
    try:
        value = _load(text, where)
    except yaml.YAMLError:
        return text
    check_size(value, where)
    return value


def check_texts(value: Any, where: str = "") -> None:
    """Check that every text is Unicode; of moderate size as :func:`check_size` says.

    Raises:
        ConfigError: One has half of a surrogate pair, as names of files that are not UTF-8 do. Names all of them.
    """
    broken = [text for text in _texts(value) if not text.isascii() and _SURROGATE.search(text)]
    if broken:
        fix = "rename the file, or correct the escape (\\ud83d\\ude00 is one sign)"
        raise ConfigError([Problem(f"{shortened(text)} is no Unicode text", fix=fix, where=where) for text in broken])


_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for part in pair for text in _texts(part))
    else:
        yield from (text for part in _parts(value) for text in _texts(part))


def check_size(value: Any, where: str = "") -> None:
    """Check that a value is of moderate size and depth; aliases and references count each time.

    Raises:
        ConfigError: It is too deep (or refers to itself), or has too many parts.
    """
    level, total = [value], 0
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        total += len(level)
        if total > MAX_VALUES:
            raise ConfigError(
                "too many values, with aliases written out", expected=f"at most {MAX_VALUES:,}", where=where
            )
        level = [part for item in level for part in _parts(item)]
    raise ConfigError(
        "values that are nested too deeply, or refer to themselves",
        expected=f"at most {MAX_DEPTH} levels",
        where=where,
        fix="write the value out",
    )


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, (list, tuple)) else ()


def _text(path: Path) -> str:
    try:
        check_regular_file(path, ConfigError, "a YAML or JSON file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            found = f"a file of {size:,} bytes"
            raise ConfigError(found, expected=f"a config of at most {MAX_BYTES:,}", where=str(path))
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("there is no such config file", where=str(path), fix="check the path") from None
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=str(path), fix="check the path") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{error.object[error.start]:02X} is not UTF-8"
        if error.object.startswith((b"\xff\xfe", b"\xfe\xff")):
            found = "this is UTF-16, not UTF-8"
        raise ConfigError(found, where=f"{path}:{line}", fix="save it as UTF-8") from None
    except ValueError:
        raise ConfigError("no file can have this name", where=shortened(str(path)), fix="check the path") from None


# ---- JSON ----


def _from_json(text: str, where: str) -> Any:
    problems = list[Problem]()

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = dict.fromkeys(key for key in keys if keys.count(key) > 1)
        problems.extend(Problem(f"the key {shortened(key)} is written twice", fix=_TWICE, where=where) for key in twice)
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique) if text.strip() else None
    except json.JSONDecodeError as error:
        found, fix, line = json_fault(text, error)
        raise ConfigError(f"not valid JSON: {found}", where=f"{where}:{line}", fix=fix) from None
    except (ValueError, RecursionError) as error:
        found = f"JSON that cannot be read ({unreadable(error)})"
        raise ConfigError(found, where=where, fix="correct it there") from None
    if problems:
        raise ConfigError(problems)
    return value


# ---- YAML ----

_TWICE = "keep one of the two"


class _Loader(yaml.SafeLoader):
    """A safe loader that stops at :data:`MAX_DEPTH`, before Python's stack does."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth > 2 * MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem="values are nested too deeply",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _from_yaml(text: str, where: str) -> Any:
    try:
        return _load(text, where)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        found = f"not valid YAML: the character U+{code:04X}"
        raise ConfigError(found, where=f"{where}:{line}", fix="remove it, or write an escape in quotes") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line_text = f":{mark.line + 1}" if mark else ""
        detail = str(getattr(error, "problem", None) or "another document")
        known = next(((what, fix) for part, what, fix in _SYNTAX if part in detail), None)
        found, fix = known or (detail, "correct the syntax there")
        raise ConfigError(f"not valid YAML: {found}", where=f"{where}{line_text}", fix=fix) from None


def _load(text: str, where: str) -> Any:
    """Parse one document, and refuse ambiguous nodes before anything is made of them.

    Raises:
        ConfigError: Ambiguous keys and values, all at once, or aliases that expand to too much.
        yaml.YAMLError: Not one YAML document.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _Inspection(loader, where).check(root)
        _drop_empty(root)
        return loader.construct_document(root)
    finally:
        loader.dispose()


#: Levels of a config whose keys are fixed: ``guards.forgetting.budget``.
_FIXED_LEVELS = 3


def _drop_empty(node: yaml.Node, level: int = 1) -> None:
    """Remove keys with nothing after them, which mean their defaults: ``null`` has a meaning of its own."""
    if not isinstance(node, yaml.MappingNode) or level > _FIXED_LEVELS:
        return
    node.value = [(key, value) for key, value in node.value if not _is_empty(value)]
    for _, value in node.value:
        _drop_empty(value, level + 1)


def _is_empty(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null" and node.value == ""


class _Inspection:
    """Walks the nodes of one document in its order, each once."""

    def __init__(self, loader: _Loader, where: str) -> None:
        self._loader, self._where = loader, where
        self._problems = list[Problem]()
        self._sizes = dict[int, int]()
        self._open = set[int]()

    def check(self, root: yaml.Node) -> None:
        size = self._size(root)
        if size > MAX_VALUES:
            found = "too many values, with aliases written out"
            self._problems.append(Problem(found, f"at most {MAX_VALUES:,}", where=self._where))
        if self._problems:
            raise ConfigError(self._problems)

    def _size(self, node: yaml.Node) -> int:
        """Number of values below a node. Those that an alias names come earlier in the document, so are known."""
        key = id(node)
        if key in self._open:
            self._add(node, "an alias that refers to what it is a part of", fix="write the value out")
            return 0
        if key not in self._sizes:
            self._open.add(key)
            self._sizes[key] = 1 + self._sum(node)
            self._open.discard(key)
        return self._sizes[key]

    def _sum(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            return sum(self._size(value) for _, value in node.value)
        if isinstance(node, yaml.SequenceNode):
            return sum(map(self._size, node.value))
        self._check_scalar(node)
        return 0

    def _check_keys(self, node: yaml.MappingNode) -> None:
        first = dict[str, int]()
        for key, _ in node.value:
            if not _is_name(key):
                shown = shortened(key.value) if isinstance(key, yaml.ScalarNode) else "written as a value"
                self._add(key, f"the key {shown}, which YAML reads as {_kind(key)}", "text", "put it in quotes")
            elif key.value in first:
                found = f"the key {shortened(key.value)} is written twice (first in line {first[key.value]})"
                self._add(key, found, fix=_TWICE)
            else:
                first[key.value] = key.start_mark.line + 1

    def _check_scalar(self, node: yaml.Node) -> None:
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            friend = next((what for pattern, what in _FALSE_FRIENDS if pattern.fullmatch(node.value)), "")
            if friend:
                self._add(node, f"{shortened(node.value)}, which YAML reads as {friend}")
                return
        try:
            self._loader.construct_object(node)
        except (ValueError, OverflowError, yaml.YAMLError) as error:
            self._add(node, f"a value that cannot be read ({getattr(error, 'problem', None) or error})")

    def _add(self, node: yaml.Node, found: str, expected: str = "", fix: str = "") -> None:
        self._problems.append(Problem(found, expected, fix, f"{self._where}:{node.start_mark.line + 1}"))


def _is_name(key: yaml.Node) -> bool:
    return key.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def _kind(key: yaml.Node) -> str:
    kinds = {"bool": "a truth value", "int": "a number", "float": "a number", "null": "null", "timestamp": "a date"}
    return kinds.get(key.tag.rpartition(":")[2], "a list or mapping")
