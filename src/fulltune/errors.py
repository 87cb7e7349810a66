"""Define all exceptions that fulltune raises, in one hierarchy.

    FulltuneError                 exit code 1
    ├── ConfigError               the config does not parse or contradicts itself
    │   └── ArgumentError         an argument of a class or function; a ValueError too, as in transformers
    ├── DataError                 rows that cannot be trained on or scored
    ├── ModelError                the checkpoint cannot be found, read or used for the task
    ├── StoreError                a run folder, record or cache is missing, damaged or too new
    │   └── CheckpointError       there is no checkpoint to resume from; a ValueError too, as in transformers
    ├── IncompatibleError         two runs that must not be compared
    ├── PromotionRefused          exit code 3: the promotion gate failed; the alias is unchanged
    ├── ExportRefused             exit code 3: an exported model is worse than the margin allows; nothing was written
    ├── MissingDependencyError    a feature needs an extra that is not installed
    ├── ProcessError              another process of the same run died or timed out
    └── TrainingStopped           exit code 3: training ended early, weights intact
        ├── NonFiniteError        the loss, the gradient norm or a weight was NaN or infinite
        ├── DivergenceError       the loss rose sharply and did not recover
        └── MemoryExhausted       a single row of a micro-batch does not fit in memory; a RuntimeError too, as in torch

Each has one or more :class:`Problem` objects: what was found, what was expected, how to fix it, and where.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

#: Number of problems that a message lists; the rest are only counted.
SHOWN = 20

#: Number of places that are listed of one problem.
_PLACES = 3

#: Longest name that is compared with others (quadratic time), and longest path in a message, in characters.
_LONGEST_NAME = 500


@dataclass(frozen=True)
class Problem:
    """One problem, with what the reader needs to fix it.

    Attributes:
        found: The current state.
        expected: The expected state.
        fix: How to fix it, as an instruction.
        where: The file and line, or the config key.
        field: The affected column or option.
    """

    found: str
    expected: str = ""
    fix: str = ""
    where: str = ""
    field: str = ""

    def __str__(self) -> str:
        where = self.where if len(self.where) <= _LONGEST_NAME else f"{self.where[:100]} … {self.where[-100:]}"
        place = ", ".join(part for part in (on_one_line(where), self.field and f"field {self.field!r}") if part)
        text = f"{place}: {self.found}" if place else self.found
        if self.expected:
            text += f"; expected {self.expected}"
        if self.fix:
            text += f". {capitalized(self.fix)}"
        text = escape_controls(text)
        return text if text.endswith((".", "!", "?")) else text + "."

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


class FulltuneError(Exception):
    """Base of all errors of fulltune: a clear message, a non-zero exit code, no traceback on the command line."""

    exit_code = 1

    def __init__(
        self,
        found: str | Problem | Sequence[Problem],
        *,
        expected: str = "",
        fix: str = "",
        where: str = "",
        field: str = "",
    ) -> None:
        if isinstance(found, str):
            found = Problem(found, expected, fix, where, field)
        self.problems: tuple[Problem, ...] = (found,) if isinstance(found, Problem) else tuple(found)
        super().__init__(self.message())

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError.__str__ adds quotes

    def message(self) -> str:
        """Return the problems, one per line: at most :data:`SHOWN`, then the count of the rest.

        The same problem in several places is one line with their number and the first of them. So are problems of rows
        that differ in values only: the line has the values of the first row.
        """
        shown = _joined(self.problems)
        if len(shown) == 1:
            return str(shown[0])
        lines = [f"{len(shown)} problems:"]
        lines += [f"  - {problem}" for problem in shown[:SHOWN]]
        if len(shown) > SHOWN:
            lines.append(f"  … and {len(shown) - SHOWN} more.")
        return "\n".join(lines)


#: A position in a source of rows: a line or an index.
_ROW = re.compile(r".*(:\d+|\[\d+\])|row \d+ of .*", re.DOTALL)

#: Parts of a message that differ between rows with the same problem: values and numbers.
_VALUE = re.compile(r"\([^()]*\)|'[^']*'|\"[^\"]*\"|\d+")


def _joined(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems with all places of the same problem in one, in the order of the first places."""
    first: dict[Problem, Problem] = {}
    places: dict[Problem, list[str]] = {}
    for problem in problems:
        key = replace(problem, where="")
        if _ROW.fullmatch(problem.where):
            parts = {name: _VALUE.sub("", getattr(problem, name)) for name in ("found", "expected", "fix")}
            key = replace(key, **parts)
        first.setdefault(key, problem)
        places.setdefault(key, []).append(problem.where)
    return [replace(problem, where=_listed(list(dict.fromkeys(places[key])))) for key, problem in first.items()]


def _listed(places: Sequence[str]) -> str:
    """Return the first places and the number of all."""
    first = [place for place in places if place][:_PLACES]
    more = f" and {len(places) - len(first):,} more" if len(places) > len(first) > 0 else ""
    return ", ".join(first) + more


class ConfigError(FulltuneError):
    """The config does not parse, has an unknown key, or contradicts itself."""


class ArgumentError(ConfigError, ValueError):
    """An argument of a class or function has an invalid value."""


class UnknownMetricError(ArgumentError, KeyError):
    """No evaluation returns the metric that selects the best model; a :class:`KeyError` as in :mod:`transformers`."""


class DataError(FulltuneError):
    """Rows cannot be trained on or scored."""


class RowError(DataError, ValueError):
    """A model rejects rows; :mod:`transformers` raises a :class:`ValueError` here."""


class ModelError(FulltuneError):
    """The checkpoint cannot be found, read, or used for the task."""


class RowLengthError(ModelError, ValueError):
    """A model rejects the length of a row; :mod:`transformers` raises a :class:`ValueError` here."""


class StoreError(FulltuneError):
    """A run folder, record or cache is missing, damaged, or written by a newer fulltune."""


class CheckpointError(StoreError, ValueError):
    """There is no checkpoint to resume from; :class:`transformers.Trainer` raises a :class:`ValueError` here."""


class IncompatibleError(FulltuneError):
    """The scores of two runs are not comparable."""


class PromotionRefused(FulltuneError):
    """The promotion gate of the registry rejected a version; the alias is unchanged."""

    exit_code = 3


class ExportRefused(FulltuneError):
    """An exported model is worse than the margin allows; nothing was written.

    Attributes:
        export: The record of the comparison, as JSON.
    """

    exit_code = 3

    def __init__(self, found: str, *, expected: str, fix: str, export: str) -> None:
        self.export = export
        super().__init__(found, expected=expected, fix=fix)


class MissingDependencyError(FulltuneError):
    """A feature needs a package that is not installed."""


class ProcessError(FulltuneError):
    """Another process of the same run died or timed out."""


class TrainingStopped(FulltuneError):
    """Training was stopped early; the weights are those after the last good step."""

    exit_code = 3


class NonFiniteError(TrainingStopped):
    """The loss or the gradient norm was NaN or infinite, detected before the optimizer step.

    Attributes:
        step: The optimizer step that was skipped, counted from 1.
        quantity: ``"loss"``, ``"gradient norm"`` or ``"weights"``.
        row_ids: Ids of the rows in the affected batch.
    """

    def __init__(self, step: int, quantity: str, value: float, row_ids: Sequence[str]) -> None:
        self.step = step
        self.quantity = quantity
        self.value = value
        self.row_ids = tuple(row_ids)
        if step < 1:
            super().__init__(
                f"the {quantity} are {value} before the first step",
                expected="a finite number",
                fix="the checkpoint is damaged: download it again, or choose another",
                field="model",
            )
            return
        super().__init__(
            f"the {quantity} became {value} at step {step} (rows {_some(self.row_ids) or 'unknown'})",
            expected="a finite number",
            fix="check those rows, lower train.learning_rate, or raise train.warmup; "
            f"the weights are those of step {step - 1}",
        )


class DivergenceError(TrainingStopped):
    """The loss rose sharply and did not recover, or training made it worse; detected before the optimizer step.

    Attributes:
        step: The optimizer step that was skipped, counted from 1.
        loss: The loss at that step.
        limit: The limit that all losses, or most of them, had to stay below.
        row_ids: Ids of the rows in the batch of the first spike.
    """

    def __init__(self, step: int, loss: float, limit: float, usual: float, spikes: int, row_ids: Sequence[str]) -> None:
        self.step = step
        self.loss = loss
        self.limit = limit
        self.row_ids = tuple(row_ids)
        times = f" for {spikes} steps" if spikes > 1 else ""
        rows = f" (rows {_some(self.row_ids)})" if self.row_ids else ""
        found = f"stayed above {limit:.4g}{times} and was {loss:.4g} at step {step}, where {usual:.4g} was usual"
        if not spikes:
            found = (
                f"is worse than before training: most losses lie above {limit:.4g}, where {usual:.4g} was the start, "
            )
            found += f"and it was {loss:.4g} at step {step}"
        super().__init__(
            f"the loss {found}{rows}",
            expected="losses close to the earlier ones",
            fix="lower train.learning_rate, or raise train.warmup",
        )


class MemoryExhausted(TrainingStopped, RuntimeError):
    """A step ran out of memory and cannot be computed in smaller parts.

    It is a :class:`RuntimeError` with the reason that torch gave, so ``auto_find_batch_size`` and scripts that catch
    torch's error handle it.

    Attributes:
        step: The optimizer step that was skipped, counted from 1.
    """

    def __init__(self, step: int, smallest: str, reason: str) -> None:
        self.step = step
        super().__init__(
            f"out of memory at step {step} with {smallest} ({reason.splitlines()[0]})",
            expected="memory for at least one row",
            fix="set train.gradient_checkpointing: true, lower data.max_length, or choose a smaller model "
            f"(`fulltune plan` lists the memory by part); the weights are those of step {step - 1}",
        )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (" …" if len(ids) > SHOWN else "")


def check_schema(what: str, schema: int, known: int, where: object) -> None:
    """Check that this version of fulltune can read a file.

    Args:
        what: The file, for the message.
        schema: Its schema.
        known: The newest schema of this version.
        where: Path of the file.

    Raises:
        StoreError: A newer version wrote it.
    """
    if schema > known:
        expected = f"at most {known}"
        raise StoreError(f"{what} has schema {schema}", expected=expected, where=str(where), fix="upgrade fulltune")


def abridged(names: Sequence[str], shown: int = 5) -> str:
    """Return the first names and the number of the others, for a message."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")


def shortened(value: object, length: int = 80) -> str:
    """Return ``repr(value)``, shortened for a message."""
    if isinstance(value, int) and value.bit_length() > 4 * length:
        return f"a number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]} …"


#: Control characters except tab and newline, marks that reorder or break lines, invisible tags, lone surrogates.
UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def escape_controls(text: str) -> str:
    r"""Return the text with every character that could control a terminal replaced by an escape, e.g. ``\x1b``."""
    return UNSAFE.sub(_escaped, text.replace("\r\n", "\n"))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def on_one_line(text: str) -> str:
    """Return a name as messages write it: with escapes also in place of tabs and line breaks."""
    return escape_controls(text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t"))


#: A first word that may be capitalized: letters, and an apostrophe or a mark after it.
_PLAIN_WORD = re.compile(r"[a-z]+('[a-z]+)?[,;:]?( |$)")

#: Commands that a fix may begin with.
_PROGRAMS = ("apt-get ", "fulltune ", "git ", "pip ", "python ")


def capitalized(text: str) -> str:
    """Return a sentence with a capital letter; keys of a config, options and commands keep their case."""
    is_word = _PLAIN_WORD.match(text) and not text.startswith(_PROGRAMS)
    return f"{text[0].upper()}{text[1:]}" if is_word else text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'?"`` with the closest known name, or ``""`` if none is close."""
    close = closest(name, known)
    return f"did you mean {close!r}?" if close else ""


def closest(name: str, known: Iterable[str]) -> str:
    """Return the closest known name, ignoring case, or ``""`` if none is close."""
    if len(name) > _LONGEST_NAME:
        return ""
    names = sorted(known)
    matches = [known_name for known_name in names if known_name.lower() == name.lower()]
    return next(iter(matches or difflib.get_close_matches(name, names, n=1, cutoff=0.6)), "")
