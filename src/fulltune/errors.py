"""Everything that fulltune raises on purpose, in one tree.

    FulltuneError                 exit code 1
    ├── ConfigError               the config does not parse or contradicts itself
    │   └── ArgumentError         an argument of a class or function; a ValueError too, as in transformers
    ├── DataError                 rows that cannot be trained on or scored
    ├── ModelError                the checkpoint cannot be found, read or used for the task
    ├── StoreError                a run folder, record or cache is missing, damaged or too new
    │   └── CheckpointError       there is no checkpoint to go on from; a ValueError too, as in transformers
    ├── IncompatibleError         two runs that must not be compared
    ├── PromotionRefused          exit code 3: the registry's gate; the alias stays where it was
    ├── MissingDependencyError    a feature needs an extra that is not installed
    ├── ProcessError              another process of the same run died, or did not answer in time
    └── TrainingStopped           exit code 3: training ended early, weights intact
        ├── NonFiniteError        the loss, the gradient norm or a weight was NaN or infinite
        ├── DivergenceError       the loss shot up and did not come back
        └── MemoryExhausted       a single row of a micro-batch does not fit in memory

Each carries one or more :class:`Problem`: what was found, what was expected, what to do, and where.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

#: How many problems a message shows before it says how many more there are.
SHOWN = 20

#: Characters of a name that is compared with others (which takes quadratic time), and of a path in a message.
_LONGEST_NAME = 500


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, told so that the reader can mend it.

    Attributes:
        found: What is there now.
        expected: What should be there.
        fix: What to do, as an instruction.
        where: The file and line, or the config key.
        field: The column or option concerned.
    """

    found: str
    expected: str = ""
    fix: str = ""
    where: str = ""
    field: str = ""

    def __str__(self) -> str:
        where = self.where if len(self.where) <= _LONGEST_NAME else f"{self.where[:100]} … {self.where[-100:]}"
        place = ", ".join(part for part in (where, self.field and f"field {self.field!r}") if part)
        text = f"{place}: {self.found}" if place else self.found
        if self.expected:
            text += f"; expected {self.expected}"
        if self.fix:
            text += f". {self.fix[0].upper()}{self.fix[1:]}"
        return text if text.endswith((".", "!", "?")) else text + "."

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


class FulltuneError(Exception):
    """Base of all errors here: one clear message, a non-zero exit code, no traceback on the command line."""

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
        return str(self.args[0])  # that of a KeyError has quotes around it

    def message(self) -> str:
        """The problems, one a line; at most :data:`SHOWN` of them, then the count of the rest."""
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = [f"{len(self.problems)} problems:"]
        lines += [f"  - {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"  … and {len(self.problems) - SHOWN} more.")
        return "\n".join(lines)


class ConfigError(FulltuneError):
    """The config does not parse, has an unknown key, or contradicts itself."""


class ArgumentError(ConfigError, ValueError):
    """An argument of a class or function that is called from Python."""


class UnknownMetricError(ArgumentError, KeyError):
    """No evaluation gives the metric that chooses the best model; a :class:`KeyError` as in :mod:`transformers`."""


class DataError(FulltuneError):
    """Rows that cannot be trained on or scored."""


class RowError(DataError, ValueError):
    """Rows that a model refuses, where :mod:`transformers` raises a :class:`ValueError`."""


class ModelError(FulltuneError):
    """The checkpoint cannot be found, read, or used for the task."""


class RowLengthError(ModelError, ValueError):
    """A model refuses the length of a row, where :mod:`transformers` raises a :class:`ValueError`."""


class StoreError(FulltuneError):
    """A run folder, record or cache is missing, damaged, or written by a newer fulltune."""


class CheckpointError(StoreError, ValueError):
    """There is no checkpoint to go on from, where :class:`transformers.Trainer` raises a :class:`ValueError`."""


class IncompatibleError(FulltuneError):
    """Two runs whose scores do not mean the same thing."""


class PromotionRefused(FulltuneError):
    """A version that the registry's gate does not let through; the alias stays where it was."""

    exit_code = 3


class MissingDependencyError(FulltuneError):
    """A feature needs a package that is not installed."""


class ProcessError(FulltuneError):
    """Another process of the same run died, or did not answer in time."""


class TrainingStopped(FulltuneError):
    """Training ended early on purpose; the weights are as they were after the last good step."""

    exit_code = 3


class NonFiniteError(TrainingStopped):
    """The loss or the gradient norm was NaN or infinite, noticed before the optimizer step.

    Attributes:
        step: The optimizer step that was not taken, counted from 1.
        quantity: ``"loss"``, ``"gradient norm"`` or ``"weights"``.
        row_ids: Ids of the rows in the offending batch.
    """

    def __init__(self, step: int, quantity: str, value: float, row_ids: Sequence[str]) -> None:
        self.step, self.quantity, self.value, self.row_ids = step, quantity, value, tuple(row_ids)
        if step < 1:
            super().__init__(
                f"the {quantity} are {value} before the first step",
                expected="a finite number",
                fix="the checkpoint is damaged: fetch it again, or choose another",
                field="model",
            )
            return
        super().__init__(
            f"the {quantity} became {value} at step {step} (rows {_some(self.row_ids) or 'unknown'})",
            expected="a finite number",
            fix="look at those rows, lower train.learning_rate, or raise train.warmup; "
            f"the weights are those of step {step - 1}",
        )


class DivergenceError(TrainingStopped):
    """The loss shot up and did not come back, or training made it worse; noticed before the optimizer step.

    Attributes:
        step: The optimizer step that was not taken, counted from 1.
        loss: The loss there.
        limit: What losses had to stay below, or most of them.
        row_ids: Ids of the rows in the batch that shot up first.
    """

    def __init__(self, step: int, loss: float, limit: float, usual: float, spikes: int, row_ids: Sequence[str]) -> None:
        self.step, self.loss, self.limit, self.row_ids = step, loss, limit, tuple(row_ids)
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
            expected="losses that stay near those before them",
            fix="lower train.learning_rate, or raise train.warmup",
        )


class MemoryExhausted(TrainingStopped):
    """Memory ran out in a step that cannot be computed in smaller parts.

    Attributes:
        step: The optimizer step that was not taken, counted from 1.
    """

    def __init__(self, step: int, smallest: str, reason: str) -> None:
        self.step = step
        super().__init__(
            f"out of memory at step {step} with {smallest} ({reason.splitlines()[0]})",
            expected="room for at least one row",
            fix="set train.gradient_checkpointing: true, lower data.max_length, or choose a smaller model "
            f"(`fulltune plan` shows what takes memory); the weights are those of step {step - 1}",
        )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (" …" if len(ids) > SHOWN else "")


def shortened(value: object, length: int = 80) -> str:
    """Return ``repr(value)``, cut to a length that a message can hold."""
    if isinstance(value, int) and value.bit_length() > 4 * length:
        return f"a number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]} …"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"did you mean 'x'?"`` for the closest known name, or ``""`` when none is close."""
    close = closest(name, known)
    return f"did you mean {close!r}?" if close else ""


def closest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is closest, in whatever case; ``""`` when none is close."""
    if len(name) > _LONGEST_NAME:
        return ""
    names = sorted(known)
    same = [one for one in names if one.lower() == name.lower()]
    return next(iter(same or difflib.get_close_matches(name, names, n=1, cutoff=0.6)), "")
