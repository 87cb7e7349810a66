"""Write a config as YAML with an explanation on every line."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fulltune.runtime.config_file import to_yaml
from fulltune.runtime.terminal import escape_controls

#: Column where explanations begin, and the longest line.
_COLUMN, _WIDTH = 40, 110


@dataclass(frozen=True)
class Line:
    """One key of the config, its value and why it has that value; a line that is not ``active`` is an alternative."""

    key: str
    value: Any
    why: str
    active: bool = True


@dataclass(frozen=True)
class Section:
    """Keys of one section; the name is empty for keys at the top."""

    name: str
    lines: Sequence[Line] = field(default=())


def to_text(title: Sequence[str], sections: Sequence[Section]) -> str:
    """Return the config as text: a title in comments, then the sections."""
    parts = ["\n".join(comment for line in title for comment in _comment(line))]
    parts += ["\n".join(_section(section)) for section in sections if section.lines]
    return "\n\n".join(parts) + "\n"


def to_mapping(sections: Sequence[Section]) -> dict[str, Any]:
    """Return the same config as a mapping."""
    mapping = dict[str, Any]()
    for section in sections:
        values = {line.key: line.value for line in section.lines if line.active}
        mapping.update({section.name: values} if section.name and values else values)
    return mapping


def _section(section: Section) -> Iterator[str]:
    if section.name:
        yield f"{section.name}:"
    indent = "  " if section.name else ""
    for line in section.lines:
        written = f"{indent}{'' if line.active else '# '}{_pair(line.key, line.value)}"
        why = _one_line(line.why)
        if len(written) < _COLUMN - 1 and _COLUMN + 2 + len(why) <= _WIDTH:
            yield f"{written:<{_COLUMN}}# {why}"
        else:
            yield from _comment(why, indent)
            yield written


def _comment(text: str, indent: str = "") -> list[str]:
    """Return a text as lines of comments."""
    start = f"{indent}# "
    return textwrap.wrap(
        _one_line(text),
        _WIDTH,
        initial_indent=start,
        subsequent_indent=start,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _pair(key: str, value: Any) -> str:
    """Return ``key: value`` in one line."""
    if isinstance(value, (list, tuple)):
        return f"{key}: {json.dumps(list(value), ensure_ascii=False)}"
    if isinstance(value, Mapping):
        return f"{key}: {{{', '.join(_pair(inner, one) for inner, one in value.items())}}}"
    return to_yaml({key: value}).rstrip("\n")


def _one_line(text: str) -> str:
    return escape_controls(" ".join(text.split()))


def reasons(sections: Sequence[Section]) -> Mapping[str, str]:
    """Return the explanation of each key that is set."""
    return {
        f"{section.name}.{line.key}".lstrip("."): _one_line(line.why)
        for section in sections
        for line in section.lines
        if line.active
    }
