"""Read and write config files and values: YAML 1.2, or JSON if the file name ends in ``.json``.

Time and memory are bounded, and ambiguous input is rejected with its line: duplicate keys, keys that are not text, and
numbers in a notation that is rarely intended (``0777`` is octal, ``1:30`` is in base 60).
"""

from __future__ import annotations

import io
import json
import re
import shlex
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

from fulltune.errors import ConfigError, Problem, closest, shortened
from fulltune.runtime.json_syntax import json_fault, unreadable
from fulltune.runtime.paths import check_regular_file, is_file, is_folder, names_in

#: Maximum bytes of a config file. The parser reads about 100 kB per second.
MAX_BYTES = 256 * 1024

#: Maximum number of values of a config, with aliases expanded.
MAX_VALUES = 20_000

#: Maximum nesting of values.
MAX_DEPTH = 40

#: Suffixes of data files.
_DATA_SUFFIXES = frozenset(
    f".{name}"
    for name in "jsonl ndjson csv tsv parquet arrow feather xlsx xls ods txt gz sqlite sqlite3 db".split()  # noqa: SIM905
)

_KINDS: tuple[tuple[type, str], ...] = (
    (type(None), "an empty file"),
    (list, "a list"),
    (str, "plain text"),
    (bool, "a truth value"),
)

#: A key before a full-width colon, or before a colon and a space that is none to YAML.
_LOOKALIKE = re.compile(r"^[ -]*\w+(\uff1a|:[\u00a0\u2000-\u200b\u202f\u3000\ufeff])", re.MULTILINE)

#: Part of the parser's message, problem and fix.
_SYNTAX = (
    (r"character '\t'", "a tab ('\\t') at the beginning of a value", "indent with spaces"),
    ("mapping values are not allowed", "a `:` in the middle of a value", "correct the indentation, or quote the text"),
    ("could not find expected ':'", "a line that is no `key: value`", "write a space after the colon"),
    ("document start", "a line that is no `key: value`", "write every key as `key: value`"),
    ("another document", "another document", "keep one, and remove the `---` between them"),
    ("block end", "a line whose indentation fits no section", "align it with the keys next to it"),
    ("unexpected end of stream", "a quote that is never closed", "close it"),
    ("directive", "a directive (a line that begins with %)", "remove it: configs are YAML 1.2"),
    ("maximum depth", "values are nested too deeply", "write fewer levels"),
    ("escape", "an invalid escape sequence in double quotes", "use single quotes, or / in paths"),
    ("undefined alias", "an undefined alias (a value that begins with *)", "put the text in quotes"),
    ("or ']'", "a bracket that is not closed, or a comma that is missing", "close it: [a, b], {a: 1}"),
    ("or '}'", "a bracket that is not closed, or a comma that is missing", "close it: [a, b], {a: 1}"),
    ("flow", "a bracket that is not closed, or a comma that is missing", "close it: [a, b], {a: 1}"),
    ("cannot start any token", "a character that cannot begin a value", "put the text in quotes"),
)

#: Plain values that YAML 1.1 and 1.2 read differently, or whose meaning is rarely intended, and an explanation.
_AMBIGUOUS_NUMBERS = (
    (re.compile(r"[-+]?0[0-9_]+"), "YAML 1.1 reads as an octal number: a decimal one has no leading 0"),
    (
        re.compile(r"[-+]?([1-9][0-9_]*(:[0-5]?[0-9])+|[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*)"),
        "YAML 1.1 reads as a number in base 60: put it in quotes",
    ),
)

#: Quotes as word processors and chats write them, which are part of the text to YAML.
_TYPOGRAPHIC = re.compile(
    r"[\u2018\u201a\u201b\u2019][^\u2018\u2019]*[\u2018\u2019]|[\u201c\u201d\u201e\u201f\u00ab\u00bb].*[\u201c\u201d\u00ab\u00bb]"
)

_OTHER_LINE_ENDS = re.compile(r"[\x85\u2028\u2029]")
_DIRECTIVE = re.compile(r"^%(?!YAML 1\.2\s*$)", re.MULTILINE)

_TAG = "tag:yaml.org,2002:"


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a config file.

    Raises:
        ConfigError: The file cannot be read, is too large, is not valid YAML or JSON, is not a mapping, or has
            ambiguous keys and values (all of them are reported).
    """
    _check_kind(path)
    text = _text(path)
    raw = _from_json(text, str(path)) if path.suffix.lower() == ".json" else _from_yaml(text, str(path))
    if not isinstance(raw, dict):
        type_name = next((name for type_, name in _KINDS if isinstance(raw, type_)), "a number")
        fix = "write `model: …`, `task: …` and `data: …` on separate lines"
        if isinstance(raw, list):
            fix = f"if these are rows, `{_init(path)}` writes a config for them; otherwise {fix}"
        raise ConfigError(
            f"found {type_name}", expected="a mapping with model, task and data", where=str(path), fix=fix
        )
    check_size(raw, str(path))
    return raw


def _check_kind(path: Path) -> None:
    """Check that a path is not data or a folder of data, for which there may be no config yet.

    Raises:
        ConfigError: It is; names the command that writes a config.
    """
    expected, fix = "a YAML or JSON config", f"`{_init(path)}` writes a config for it"
    if is_folder(path):
        inner = path / "config.yaml"
        fix = f"name {inner}" if is_file(inner) else fix
        raise ConfigError("this is a folder", expected=expected, where=str(path), fix=fix)
    if is_file(path) and path.suffix.lower() in _DATA_SUFFIXES:
        raise ConfigError("this is data, not a config", expected=expected, where=str(path), fix=fix)


def _init(path: Path) -> str:
    return f"fulltune init {shlex.quote(str(path))}"


def read_value(text: str, where: str) -> Any:
    """Parse one YAML value; text that is not valid YAML is returned unchanged.

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


def as_value(text: str) -> str:
    """Return a text as it is written after a key, quoted if YAML needs that."""
    return to_yaml([text]).removeprefix("- ").rstrip("\n")


class _Representer(SafeRepresenter):
    """Represent values so that YAML 1.1 reads them equally: other programs, such as accelerate, use that version."""

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
    """Check that every text in a value is valid Unicode. The size must have been checked by :func:`check_size`.

    Raises:
        ConfigError: Texts contain lone surrogates, as file names that are not UTF-8 do. All are reported.
    """
    broken = [text for text in _texts(value) if not text.isascii() and _SURROGATE.search(text)]
    if broken:
        fix = "rename the file, or correct the escape (\\ud83d\\ude00 is one character)"
        raise ConfigError([Problem(f"{shortened(text)} is not Unicode", fix=fix, where=where) for text in broken])


_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _texts(value: Any) -> Iterator[str]:
    """Yield all keys and values that are text."""
    if isinstance(value, str):
        yield value
        return
    if isinstance(value, Mapping):
        for key in value:
            yield from _texts(key)
    for part in _parts(value):
        yield from _texts(part)


def check_size(value: Any, where: str = "") -> None:
    """Check the number and the nesting of values; aliases and references count every time they occur.

    Raises:
        ConfigError: The value is nested too deeply, refers to itself, or has too many parts.
    """
    level = [value]
    total = 0
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        total += len(level)
        if total > MAX_VALUES:
            raise ConfigError("too many values, with aliases expanded", expected=f"at most {MAX_VALUES:,}", where=where)
        level = [part for item in level for part in _parts(item)]
    raise ConfigError(
        "values are nested too deeply, or refer to themselves",
        expected=f"at most {MAX_DEPTH} levels",
        where=where,
        fix="write the value out",
    )


def _parts(value: Any) -> Sequence[Any]:
    """Return the values of a mapping or list; empty for anything else."""
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, (list, tuple)) else ()


def _text(path: Path) -> str:
    """Return the text of a config file.

    Raises:
        ConfigError: The file does not exist, cannot be read, is too large, or is not UTF-8.
    """
    try:
        check_regular_file(path, ConfigError, "a YAML or JSON file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            message = f"a file of {size:,} bytes"
            raise ConfigError(message, expected=f"a config of at most {MAX_BYTES:,}", where=str(path))
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        close = closest(path.name, names_in(path.parent))
        fix = f"did you mean {str(path.with_name(close))!r}?" if close else "check the path"
        raise ConfigError("the config file does not exist", where=str(path), fix=fix) from None
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=str(path), fix="check the path") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{error.object[error.start]:02X} is not UTF-8"
        if error.object.startswith((b"\xff\xfe", b"\xfe\xff")):
            message = "this is UTF-16, not UTF-8"
        raise ConfigError(message, where=f"{path}:{line}", fix="save it as UTF-8") from None
    except ValueError:
        raise ConfigError("the path is not valid", where=shortened(str(path)), fix="check the path") from None


# ---- JSON ----


def _from_json(text: str, where: str) -> Any:
    problems = list[Problem]()

    def check_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in dict.fromkeys(keys):
            if keys.count(key) > 1:
                problems.append(Problem(f"duplicate key {shortened(key)}", fix=_DUPLICATE_FIX, where=where))
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=check_unique) if text.strip() else None
    except json.JSONDecodeError as error:
        problem, fix, line = json_fault(text, error)
        raise ConfigError(f"not valid JSON: {problem}", where=f"{where}:{line}", fix=fix) from None
    except (ValueError, RecursionError) as error:
        message = f"the JSON cannot be read ({unreadable(error)})"
        raise ConfigError(message, where=where, fix="correct it there") from None
    if problems:
        raise ConfigError(problems)
    return value


# ---- YAML ----

_DUPLICATE_FIX = "keep one of the two"


def _from_yaml(text: str, where: str) -> Any:
    try:
        return _load(text, where)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        message = f"not valid YAML: the character U+{code:04X}"
        raise ConfigError(message, where=f"{where}:{line}", fix="remove it, or write an escape in quotes") from None
    except YAMLError as error:
        _check_colons(text, where)
        mark = getattr(error, "problem_mark", None)
        line_text = f":{mark.line + 1}" if mark else ""
        detail = str(getattr(error, "problem", None) or "another document")
        problem, fix = _yaml_problem(detail)
        raise ConfigError(f"not valid YAML: {problem}", where=f"{where}{line_text}", fix=fix) from None


def _check_colons(text: str, where: str) -> None:
    """Raise an error at a key whose colon and space only look like them, as pasted text often has it."""
    match = _LOOKALIKE.search(text)
    if match is not None:
        line = text.count("\n", 0, match.start(1)) + 1
        codes = " ".join(f"U+{ord(one):04X}" for one in match[1] if ord(one) > 127)
        message = f"not valid YAML: the character {codes} after a key"
        raise ConfigError(message, where=f"{where}:{line}", fix="type the colon and the space again") from None


def _yaml_problem(detail: str) -> tuple[str, str]:
    """Return the problem and the fix for a message of the parser."""
    for part, problem, fix in _SYNTAX:
        if part in detail:
            return problem, fix
    return detail, "correct the syntax there"


def _load(text: str, where: str) -> Any:
    """Parse one document, after checking its nodes for ambiguous keys and values.

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
    """Return the root node of a document; None if it is empty."""
    # YAML 1.1 reads some values differently, and the parser raises KeyError for unknown versions.
    if directive := _DIRECTIVE.search(text):
        line = text.count("\n", 0, directive.start())
        raise MarkedYAMLError(problem="directive", problem_mark=FileMark("", directive.start(), line, 0))
    try:
        root: Node | None = yaml.compose(text)
    except ValueError as error:
        raise MarkedYAMLError(problem=f"escape: {error}") from None  # an escape above U+10FFFF
    return root


#: Levels of a config whose keys are fixed: ``guards.forgetting.budget``.
_FIXED_LEVELS = 3


def _drop_empty(node: Node, level: int = 1) -> None:
    """Remove keys without a value, which keep their defaults; an explicit ``null`` is a value."""
    if not isinstance(node, MappingNode) or level > _FIXED_LEVELS:
        return
    node.value = [(key, value) for key, value in node.value if not _is_empty(value)]
    for _, value in node.value:
        _drop_empty(value, level + 1)


def _is_empty(node: Node) -> bool:
    return node.tag == f"{_TAG}null" and node.value == ""


class _Inspection:
    """Check of the nodes of one document, each visited once, in document order."""

    def __init__(self, constructor: SafeConstructor, where: str) -> None:
        self._constructor = constructor
        self._where = where
        self._problems = list[Problem]()
        self._sizes = dict[int, int]()
        self._open = set[int]()

    def check(self, root: Node) -> None:
        """Check the document.

        Raises:
            ConfigError: Keys or values are ambiguous, or there are too many values.
        """
        size = self._size(root)
        if size > MAX_VALUES:
            message = "too many values, with aliases expanded"
            self._problems.append(Problem(message, f"at most {MAX_VALUES:,}", where=self._where))
        if self._problems:
            raise ConfigError(self._problems)

    def _size(self, node: Node) -> int:
        """Return the number of values below a node, including those of aliases."""
        # The target of an alias comes earlier in the document, so its size is already known.
        key = id(node)
        if key in self._open:
            self._add(node, "an alias refers to a value that contains it", fix="write the value out")
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
            elif not key.style and _TYPOGRAPHIC.fullmatch(key.value):
                self._add_quotes(key, "a key")
            elif key.value in first:
                message = f"duplicate key {shortened(key.value)} (first in line {first[key.value]})"
                self._add(key, message, fix=_DUPLICATE_FIX)
            else:
                first[key.value] = key.start_mark.line + 1

    def _check_scalar(self, node: Node) -> None:
        if node.tag == f"{_TAG}float" and "_" in node.value:
            node.tag = f"{_TAG}str"  # digits are grouped in whole numbers only
        is_plain = isinstance(node, ScalarNode) and not node.style
        if is_plain and _TYPOGRAPHIC.fullmatch(node.value):
            self._add_quotes(node, "a value")
            return
        for pattern, meaning in _AMBIGUOUS_NUMBERS:
            if is_plain and pattern.fullmatch(node.value):
                self._add(node, f"{shortened(node.value)}, which {meaning}")
                return
        try:
            self._constructor.construct_object(node)
        except (ValueError, KeyError, OverflowError, YAMLError) as error:
            reason = getattr(error, "problem", None) or error
            if "set_int_max_str_digits" in str(reason):  # Python's advice for programmers
                reason = unreadable(error)
            self._add(node, f"{shortened(node.value)}, a value that cannot be read ({reason})")

    def _add_quotes(self, node: Node, what: str) -> None:
        fix = f"write {as_value(node.value[1:-1])}, or put it in straight quotes if these belong to the text"
        self._add(node, f"typographic quotes around {what} ({shortened(node.value)})", "straight quotes", fix)

    def _add(self, node: Node, message: str, expected: str = "", fix: str = "") -> None:
        self._problems.append(Problem(message, expected, fix, f"{self._where}:{node.start_mark.line + 1}"))


def _is_name(key: Node) -> bool:
    """Return whether a key is text, or ``<<``."""
    return key.tag in (f"{_TAG}str", f"{_TAG}merge")


def _kind(key: Node) -> str:
    """Return a description of the type of a key."""
    kinds = {"bool": "a truth value", "int": "a number", "float": "a number", "null": "null", "timestamp": "a date"}
    return kinds.get(str(key.tag).rpartition(":")[2], "a list or mapping")
