"""Read and write config files and values: YAML 1.2, or JSON in a file called ``.json``.

Reading is bounded in time and memory, and nothing is guessed: a key that is written twice, a key that is no text, and a
number in a notation that hardly anybody means (``0777`` is octal, ``1:30`` counts in sixties) are problems, with their
lines.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import FileMark, MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

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
    ("directive", "a directive (a line that begins with %)", "remove it: configs are YAML 1.2"),
    ("maximum depth", "values are nested too deeply", "write fewer levels"),
    ("escape", "a backslash in double quotes that begins no escape", "use single quotes, or / in paths"),
    ("undefined alias", "an undefined alias (a value that begins with *)", "put the text in quotes"),
    ("or ']'", "a bracket that is not closed, or a comma that is missing", "close it: [a, b], {a: 1}"),
    ("or '}'", "a bracket that is not closed, or a comma that is missing", "close it: [a, b], {a: 1}"),
    ("flow", "a bracket that is not closed, or a comma that is missing", "close it: [a, b], {a: 1}"),
    ("cannot start any token", "a sign that begins no value", "put the text in quotes"),
)

#: Plain values that YAML 1.1 and 1.2 read differently, or that hardly anybody means.
_FALSE_FRIENDS = (
    (re.compile(r"[-+]?0[0-9_]+"), "YAML 1.1 reads as an octal number: a decimal one has no leading 0"),
    (
        re.compile(r"[-+]?([1-9][0-9_]*(:[0-5]?[0-9])+|[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*)"),
        "YAML 1.1 reads as a number in base 60: put it in quotes",
    ),
)

_OTHER_LINE_ENDS = re.compile(r"[\x85\u2028\u2029]")
_DIRECTIVE = re.compile(r"^%(?!YAML 1\.2\s*$)", re.MULTILINE)

_TAG = "tag:yaml.org,2002:"


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
    except YAMLError:
        return text
    check_size(value, where)
    return value


def to_yaml(value: Any) -> str:
    """Return YAML that :func:`read_value` and :func:`read_mapping` read as the same value; keys keep their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.width = sys.maxsize  # the writer loses a blank where it folds a line at a tab
    yaml.representer.sort_base_mapping_type_on_output = False
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()


class _Representer(SafeRepresenter):
    """Writes what YAML 1.1 reads as the same value too: other programs, such as accelerate, read it as that."""

    _older = VersionedResolver(version=(1, 1))

    def represent_str(self, data: str) -> ScalarNode:
        is_ambiguous = str(self._older.resolve(ScalarNode, data, (True, False))) != f"{_TAG}str"
        style = '"' if _OTHER_LINE_ENDS.search(data) else "'" if is_ambiguous else None
        return self.represent_scalar(f"{_TAG}str", data, style=style)

    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e")
        return node


_Representer.add_representer(float, _Representer.represent_float)
_Representer.add_representer(str, _Representer.represent_str)


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


def _from_yaml(text: str, where: str) -> Any:
    try:
        return _load(text, where)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        found = f"not valid YAML: the character U+{code:04X}"
        raise ConfigError(found, where=f"{where}:{line}", fix="remove it, or write an escape in quotes") from None
    except YAMLError as error:
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
        YAMLError: Not one YAML document.
    """
    yaml = YAML(typ="safe", pure=True)
    # A level of values takes several calls of the parser: it must stop before Python's stack does.
    yaml.max_depth = 2 * MAX_DEPTH
    yaml.composer.warn_double_anchors = False
    root = _composed(yaml, text)
    if root is None:
        return None
    _Inspection(yaml.constructor, where).check(root)
    _drop_empty(root)
    return yaml.constructor.construct_document(root)


def _composed(yaml: YAML, text: str) -> Node | None:
    # YAML 1.1 would read other values, and the parser raises KeyError at versions that it does not know.
    if directive := _DIRECTIVE.search(text):
        line = text.count("\n", 0, directive.start())
        raise MarkedYAMLError(problem="directive", problem_mark=FileMark("", directive.start(), line, 0))
    try:
        root: Node | None = yaml.compose(text)
    except ValueError as error:
        raise MarkedYAMLError(problem=f"escape: {error}") from None  # of a number above U+10FFFF
    return root


#: Levels of a config whose keys are fixed: ``guards.forgetting.budget``.
_FIXED_LEVELS = 3


def _drop_empty(node: Node, level: int = 1) -> None:
    """Remove keys with nothing after them, which mean their defaults: ``null`` has a meaning of its own."""
    if not isinstance(node, MappingNode) or level > _FIXED_LEVELS:
        return
    node.value = [(key, value) for key, value in node.value if not _is_empty(value)]
    for _, value in node.value:
        _drop_empty(value, level + 1)


def _is_empty(node: Node) -> bool:
    return node.tag == f"{_TAG}null" and node.value == ""


class _Inspection:
    """Walks the nodes of one document in its order, each once."""

    def __init__(self, constructor: SafeConstructor, where: str) -> None:
        self._constructor, self._where = constructor, where
        self._problems = list[Problem]()
        self._sizes = dict[int, int]()
        self._open = set[int]()

    def check(self, root: Node) -> None:
        size = self._size(root)
        if size > MAX_VALUES:
            found = "too many values, with aliases written out"
            self._problems.append(Problem(found, f"at most {MAX_VALUES:,}", where=self._where))
        if self._problems:
            raise ConfigError(self._problems)

    def _size(self, node: Node) -> int:
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

    def _sum(self, node: Node) -> int:
        if isinstance(node, MappingNode):
            self._check_keys(node)
            return sum(self._size(value) for _, value in node.value)
        if isinstance(node, SequenceNode):
            return sum(map(self._size, node.value))
        self._check_scalar(node)
        return 0

    def _check_keys(self, node: MappingNode) -> None:
        first = dict[str, int]()
        for key, _ in node.value:
            if not _is_name(key):
                shown = shortened(key.value) if isinstance(key, ScalarNode) else "written as a value"
                self._add(key, f"the key {shown}, which YAML reads as {_kind(key)}", "text", "put it in quotes")
            elif key.value in first:
                found = f"the key {shortened(key.value)} is written twice (first in line {first[key.value]})"
                self._add(key, found, fix=_TWICE)
            else:
                first[key.value] = key.start_mark.line + 1

    def _check_scalar(self, node: Node) -> None:
        if node.tag == f"{_TAG}float" and "_" in node.value:
            node.tag = f"{_TAG}str"  # digits are grouped in whole numbers only
        is_plain = isinstance(node, ScalarNode) and not node.style
        friend = next((what for pattern, what in _FALSE_FRIENDS if is_plain and pattern.fullmatch(node.value)), "")
        if friend:
            self._add(node, f"{shortened(node.value)}, which {friend}")
            return
        try:
            self._constructor.construct_object(node)
        except (ValueError, KeyError, OverflowError, YAMLError) as error:
            self._add(node, f"a value that cannot be read ({getattr(error, 'problem', None) or error})")

    def _add(self, node: Node, found: str, expected: str = "", fix: str = "") -> None:
        self._problems.append(Problem(found, expected, fix, f"{self._where}:{node.start_mark.line + 1}"))


def _is_name(key: Node) -> bool:
    return key.tag in (f"{_TAG}str", f"{_TAG}merge")


def _kind(key: Node) -> str:
    kinds = {"bool": "a truth value", "int": "a number", "float": "a number", "null": "null", "timestamp": "a date"}
    return kinds.get(str(key.tag).rpartition(":")[2], "a list or mapping")
