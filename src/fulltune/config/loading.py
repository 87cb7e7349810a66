"""Read a config: a file or a mapping, options, overrides; report all problems at once, with the closest known key."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fulltune.config.schema import COLUMN_KEYS, Config, DataConfig, Section, kinds_of
from fulltune.errors import ConfigError, Problem, closest, did_you_mean, shortened
from fulltune.runtime import paths, plugins
from fulltune.runtime.config_file import check_size, check_texts, read_mapping, read_value, to_yaml
from fulltune.runtime.other_tools import instead_of, key_for, similar_to
from fulltune.runtime.rows_file import as_source, check_model_reference, with_splits
from fulltune.runtime.validation import config_spelling, expected_input

#: Place of a value that is in no file, for messages.
_OPTIONS, _OVERRIDES = "keyword arguments", "--set"

#: Similarity of names from which one is a misspelling of the other, whatever other tools call something.
_TYPO = 0.85

#: A config, a mapping of its keys, or the path of a YAML or JSON file.
ConfigSource = Config | Mapping[str, Any] | str | Path


def load_config(
    source: ConfigSource | None = None,
    overrides: Sequence[str] = (),
    *,
    options: Mapping[str, Any] | None = None,
    base: Path | None = None,
) -> Config:
    """Read a config from a YAML or JSON file or a mapping, then apply options and ``a.b=value`` overrides.

    Relative data paths are resolved against the working directory first, then against the folder of the file.

    Args:
        source: The config; None if ``options`` has all of it.
        overrides: ``a.b=value`` texts, applied last.
        options: Sections and values that are merged over the config key by key, such as ``{"train": {"epochs": 1}}``.
        base: Folder for relative data paths; by default that of the file.

    Raises:
        ConfigError: The file is missing or not YAML; a key is unknown; a value has the wrong type. All problems at
            once.
    """
    raw, where = _read({} if source is None and options is not None else source)
    merged = _plain(_without_objects(_merged(raw, options or {})))
    overridden, problems = list[str](), list[Problem]()
    for override in [overrides] if isinstance(overrides, str) else overrides:
        try:
            overridden.append(_apply(merged, override))
        except ConfigError as error:
            problems += error.problems
    try:
        check_texts(merged, where if raw or not options else _OPTIONS)
        config = Config.model_validate(merged)
    except ValidationError as error:
        problems += _joined(
            [
                _problem(item, _origin(_keys(item), where, overridden, options if raw else None))
                for item in error.errors()
            ]
        )
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError([*problems, *_later_problems(merged, where)])
    folder = base or (Path(where).parent if where else None)
    return _resolve_paths(config, folder) if folder else config


def _later_problems(raw: Mapping[str, Any], where: str) -> list[Problem]:
    """Return problems that are otherwise found once the config is valid: names of plug-ins, and of trainer options."""
    problems = []
    for kind in get_args(plugins.PluginKind):
        name = raw.get(kind)
        if isinstance(name, str) and name not in plugins.names(kind):
            fix = did_you_mean(name, plugins.names(kind)) or "use one of these"
            expected = f"one of {', '.join(plugins.names(kind))}"
            problems.append(Problem(f"there is no {kind} {name!r}", expected, fix, where, kind))
    trainer = raw.get("trainer")
    for name in trainer if isinstance(trainer, Mapping) else ():
        key = key_for(str(name))
        if key and key != f"trainer.{name}":
            problems.append(Problem(f"{key} sets this", fix=f"use {key}", where=where, field=f"trainer.{name}"))
    return problems


def dump_config(config: Config) -> str:
    """Return the config as YAML with every key, so that a run can be repeated from its folder."""
    return to_yaml(config.model_dump(mode="json"))


def _read(source: ConfigSource | None) -> tuple[dict[str, Any], str]:
    """Return a config as a mapping, and its file if it is one."""
    if isinstance(source, Config):
        return source.model_dump(mode="json"), ""
    if isinstance(source, Mapping):
        return dict(source), ""
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(
            f"an object of class {type(source).__name__}",
            expected="the path of a YAML or JSON file, a mapping, or a Config",
            fix="pass one of these",
        )
    path = Path(source)
    return read_mapping(path), str(path)


def _merged(raw: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with options merged over it: sections key by key, other values replaced."""
    merged = dict(raw)
    for name, value in options.items():
        before, after = _plain_section(merged.get(name)), _plain_section(value)
        both = isinstance(before, Mapping) and isinstance(after, Mapping)
        merged[name] = _merged(before, after) if both else value
    return merged


def _plain_section(value: Any) -> Any:
    """Return the values that were set in a section; anything else is returned as it is."""
    return value.model_dump(mode="json", exclude_unset=True) if isinstance(value, BaseModel) else value


def _origin(keys: Sequence[str], where: str, overridden: Sequence[str], options: Mapping[str, Any] | None) -> str:
    """Return where the value below these keys was given: in the file, in options or in overrides."""
    if any(f"{'.'.join(keys)}.".startswith(f"{key}.") for key in overridden):
        return _OVERRIDES
    node: Any = options or {}
    for key in keys:
        node = _plain_section(node)
        if not isinstance(node, Mapping):
            break
        if key not in node:
            return where
        node = node[key]
    return _OPTIONS if keys and options else where


def _apply(raw: dict[str, Any], override: str) -> str:
    """Apply an override to the mapping, and return its key."""
    check_texts(override, _OVERRIDES)
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"found {override!r}", expected="a.b=value", where=_OVERRIDES, fix="write it like train.epochs=1"
        )
    node: Any = raw
    *parents, last = (part.strip() for part in key.split("."))
    if not all([*parents, last]):
        fix = "write one dot between two keys, as in train.epochs=1"
        raise ConfigError(f"an empty key in {shortened(key)}", expected="a.b=value", where=_OVERRIDES, fix=fix)
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{part!r} in {key!r} is a value", expected="a section", where=_OVERRIDES)
    if not value.strip():
        fix = "write the value, `null` for none, or '\"\"' for an empty text"
        raise ConfigError(
            f"found {override!r}, without a value after the =", expected="a.b=value", where=_OVERRIDES, fix=fix
        )
    node[last] = read_value(value, _OVERRIDES)
    return ".".join([*parents, last])


def _without_objects(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the mapping after writing rows in memory to files; it is not too large.

    Raises:
        ConfigError: The model, or a split of the data, is an object that no config can name.
    """
    check_model_reference(raw.get("model"))
    data = _plain_section(raw.get("data"))
    if not isinstance(data, Mapping):
        check_size(raw)
        return raw
    data = with_splits(data)
    given = [name for name in ("train", "valid", "eval") if name in data]
    splits = dict[str, Any]()
    problems = list[Problem]()
    for name in given:
        try:
            splits[name] = as_source(data[name], f"data.{name}", _columns(data))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    plain = {**raw, "data": {**data, **splits}}
    check_size(plain)
    return plain


def _columns(data: Mapping[str, Any]) -> set[str]:
    """Return the names of all columns that the run may read."""
    named = {role: data.get(role) or DataConfig.model_fields[role].default for role in COLUMN_KEYS}
    named["messages"] = named["messages"] or "messages"
    added = data.get("columns")
    names = [*named.values(), *(added.values() if isinstance(added, Mapping) else ())]
    return {name for name in names if isinstance(name, str)}


def _plain(value: Any) -> Any:
    """Return a copy that consists of dicts with string keys, lists and values, with paths as strings.

    Numbers of NumPy become those of Python.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, BaseModel):
        return _plain_section(value)
    if isinstance(value, Real) and not isinstance(value, (bool, int, float)):
        return int(value) if isinstance(value, Integral) else float(value)
    return str(value) if isinstance(value, Path) else value


def _joined(problems: Sequence[Problem]) -> list[Problem]:
    """Return one problem per field: pydantic reports one for each type that a field accepts."""
    by_field: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        key = (problem.field, problem.found)
        first = by_field.setdefault(key, problem)
        if first is not problem and problem.expected not in first.expected:
            by_field[key] = replace(first, expected=f"{first.expected} or {problem.expected}")
    return list(by_field.values())


def _is_type(part: Any) -> bool:
    """Return True if a part of a pydantic location names a member of a union, not a key."""
    return isinstance(part, str) and (part in ("str", "float", "int") or "[" in part)


def _keys(item: Any) -> list[str]:
    """Return the keys that lead to a value that pydantic reports; an unknown key may look like a type."""
    *parents, last = item["loc"] or [""]
    keys = [str(part) for part in parents if not _is_type(part)]
    is_key = item["type"] == "extra_forbidden" or not _is_type(last)
    return [*keys, str(last)] if is_key and item["loc"] else keys


def _problem(item: Any, where: str) -> Problem:
    """Convert a pydantic error to a problem; an unknown key gets a suggestion."""
    path = ".".join(_keys(item))
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        known = _known_keys(parents)
        hint = _right_key(str(key), parents, known)
        listed = ", ".join(sorted(known))
        return Problem("unknown key", f"one of {listed}", hint or "remove it, or see docs/config.md", where, path)
    if item["type"] == "missing":
        return Problem("missing", "a value", f"add `{path}:` to the config", where, path)
    if item["type"] == "value_error":
        return Problem(str(item["ctx"]["error"]), where=where, field=path)
    is_unquoted = item["type"] == "string_type" and isinstance(item["input"], (bool, int, float))
    fix = "put it in quotes if it is a name" if is_unquoted else ""
    return Problem(config_spelling(item["input"]), expected_input(item), fix, where, path)


def _right_key(key: str, parents: Sequence[Any], known: set[str]) -> str:
    """Return the fix for an unknown key: the section that has it, our name for that of another tool, or a close one."""
    sections = [name for name in _sections_with(key) if name != ".".join(map(str, parents))]
    if sections:
        return f"write it as {' or '.join(f'{name}.{key}' for name in sections)}"
    if parents and key in Config.model_fields:
        return f"{key!r} is a key of its own, at the left margin"
    close = closest(key, known)
    if difflib.SequenceMatcher(None, key.lower(), close).ratio() >= _TYPO:
        return f"did you mean {close!r}?"
    elsewhere = similar_to(key)
    return instead_of(key) or did_you_mean(key, known) or (f"did you mean {elsewhere}?" if elsewhere else "")


def key_named(name: str) -> str:
    """Return the config key, with its section, that is called so here or by another tool; an empty text if none is."""
    if name in Config.model_fields:
        return name
    return next((f"{section}.{name}" for section in _sections_with(name)), "") or key_for(name)


def _sections_with(key: str, section: type[Section] | None = None, path: str = "") -> Iterator[str]:
    """Yield the paths of the sections that have a key of this name."""
    for name, field in (section or Config).model_fields.items():
        inner = _section_of(field.annotation)
        if inner is not None:
            here = f"{path}.{name}".lstrip(".")
            yield from [here] if key in inner.model_fields else []
            yield from _sections_with(key, inner, here)


def _section_of(annotation: Any) -> type[Section] | None:
    """Return the class of a section, which may be null; None for any other type."""
    return next((kind for kind in kinds_of(annotation) if isinstance(kind, type) and issubclass(kind, Section)), None)


def _known_keys(parents: Sequence[Any]) -> set[str]:
    schema: Any = Config
    for part in parents:
        annotation = schema.model_fields[part].annotation
        # A section that may be null is a union of itself and None.
        schema = next((one for one in get_args(annotation) if one is not NoneType), annotation)
    return set(schema.model_fields)


def _resolve_paths(config: Config, folder: Path) -> Config:
    """Resolve paths that exist only next to the config file."""

    def near(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(near, value))
        if isinstance(value, str) and not paths.matches(value) and paths.matches(str(folder / value)):
            return str(folder / value)
        return value

    names = ("train", "valid", "eval", "databases", "schemas")
    data = config.data.model_copy(update={name: near(getattr(config.data, name)) for name in names})
    return config.model_copy(update={"data": data, "model": near(config.model)})
