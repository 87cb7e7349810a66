"""Define the summary of the data that plans and records hold: what the model gets to see of the rows."""

from __future__ import annotations

from pydantic import Field

from fulltune.records.base import Model


class Truncation(Model):
    """Rows of a split that are longer than the window.

    Attributes:
        rows: Rows that lose tokens.
        unlearnable: Rows among them without any label left: nothing is learned from them.
        of: Rows of the split.
        tokens: Removed tokens by the part that they belong to, e.g. ``input``, ``answer``; without those of
            ``unlearnable`` rows.
    """

    rows: int
    unlearnable: int = 0
    of: int
    tokens: dict[str, int] = Field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Truncated rows as a fraction of the split, 0 to 1."""
        return self.rows / self.of if self.of else 0.0


class Lengths(Model):
    """Tokens per row of a split, before truncation."""

    min: int
    median: int
    p95: int
    max: int


class ClassRows(Model):
    """Rows of one class by split; a row with several labels counts for each of them."""

    label: str
    train: int
    eval: int
    valid: int = 0


class LabelSpellings(Model):
    """Labels of all splits as they are written, and as they are probably meant.

    Attributes:
        written: Number of distinct labels; each of them is a class.
        distinct: Number of labels that remain if case, whitespace, punctuation between words, invisible and look-alike
            characters do not count. If it is below ``written``, classes are probably split by their spelling.
        spellings: Labels with several spellings, at most 20: rows by spelling, the most frequent one first.
        padded: Labels that begin or end with whitespace or invisible characters, at most 20.
        merged: Labels that ``data.merge_labels`` merged: name → rows by spelling as written, at most 20.
    """

    written: int
    distinct: int
    spellings: tuple[dict[str, int], ...] = ()
    padded: tuple[str, ...] = ()
    merged: dict[str, dict[str, int]] = Field(default_factory=dict)


class Leaks(Model):
    """Evaluation rows that also occur in train with the same target.

    Attributes:
        rows: Number of these rows.
        of: All evaluation rows.
        kinds: Their number by kind, e.g. ``exact``, ``near``.
        ids: Ids of the rows if they are left out; otherwise of the first ones, at most 20.
        counted: True if they count in the deciding scores (``data.allow_leaks``); otherwise they are left out.
    """

    rows: int
    of: int
    kinds: dict[str, int] = Field(default_factory=dict)
    ids: tuple[str, ...] = ()
    counted: bool = False

    @property
    def fraction(self) -> float:
        """Leaked rows as a fraction of the evaluation rows, 0 to 1."""
        return self.rows / self.of if self.of else 0.0


class DataSummary(Model):
    """The data as the model gets it.

    Attributes:
        rows: Rows by split: ``train``, ``eval``, and ``valid`` if there is one.
        max_length: ``data.max_length``, the window in tokens; None for the default of the task and the model.
        positions: Longest input of the model in tokens, if that is less than ``max_length`` and used instead of it.
        truncation: Truncated rows by split (``train``, ``eval``); only splits that have any.
        lengths: Tokens per row by split.
        classes: Rows of each class, most frequent in train first; empty for tasks without classes.
        labels: Spelling of the labels; None for tasks without classes.
        padding: Fraction of padding in the inputs of training, 0 to 1: of ``random`` batches, and of those that are
            ``used``; packing comes on top.
        leaks: Evaluation rows that also occur in train; None if there are none.
    """

    rows: dict[str, int] = Field(default_factory=dict)
    max_length: int | None = None
    positions: int | None = None
    truncation: dict[str, Truncation] = Field(default_factory=dict)
    lengths: dict[str, Lengths] = Field(default_factory=dict)
    classes: tuple[ClassRows, ...] = ()
    labels: LabelSpellings | None = None
    padding: dict[str, float] = Field(default_factory=dict)
    leaks: Leaks | None = None
