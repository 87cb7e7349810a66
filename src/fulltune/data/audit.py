"""Audit the data before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.config import Config, DataConfig, TrainConfig
from fulltune.data import tokens
from fulltune.data.boilerplate import boilerplate_finding
from fulltune.data.findings import Audit, ExampleLike, Finding, bad_rows, rows, some
from fulltune.data.labels import kind_findings, label_findings
from fulltune.data.load import Row, Table
from fulltune.data.merging import merge_findings
from fulltune.data.overlap import Entry, overlap
from fulltune.data.split import input_text
from fulltune.data.tokens import E, FeaturesLike

__all__ = ["Audit", "Finding", "audit", "token_findings"]

#: Splits with fewer rows than this are reported.
_FEW = 50


@dataclass(frozen=True)
class _LabeledRow:
    """A row of ``valid`` with its labels."""

    id: str
    input: str
    target: str | tuple[str, ...]

    @classmethod
    def of(cls, row: Row) -> _LabeledRow:
        label = row.fields["label"] if "label" in row.fields else tuple(row.fields["labels"])
        return cls(row.id, input_text(row.fields), label)


#: Kinds of findings about labels that bad rows may cause.
_FROM_MISSING_LABELS = ("one_label", "no_labels")


def audit(
    *,
    train: Table,
    evaluation: Table,
    train_examples: Sequence[E],
    eval_examples: Sequence[E],
    config: Config,
    valid: Table | None = None,
    own_split: bool = False,
) -> Audit:
    """Check the data for all problems that are known to break runs.

    Args:
        train: Table as loaded, with the problems of its bad rows.
        evaluation: The same for ``eval``.
        train_examples: Rows of ``train`` as the task sees them.
        eval_examples: Rows of ``eval`` as the task sees them.
        config: Thresholds, batch size, and whether leaks are allowed.
        valid: The same as ``train`` for ``valid``, or None.
        own_split: The rows of ``eval`` were held out of ``train``, not named or marked by the user.
    """
    fields = train[0].fields if train else {}
    classes = "label" in fields or "labels" in fields
    overlapping = overlap(
        [Entry.of(example) for example in train_examples],
        [Entry(row.id, input_text(row.fields)) for row in valid or ()],
        [Entry.of(example) for example in eval_examples],
        allow_leaks=config.data.allow_leaks,
        one_answer=classes or "sql" in fields,
        own_split=own_split,
        paraphrases="sql" in fields,
        has_answers=not classes,
    )
    tables = {"train": train, "eval": evaluation} | ({} if valid is None else {"valid": valid})
    findings = [
        *_bad_rows(tables, config.data.bad_rows == "skip"),
        *_assumed(tables),
        *_line_ends(tables),
        *_sizes(train_examples, eval_examples, config.train),
        *_boilerplate(train, train_examples),
    ]
    findings += overlapping.findings
    if classes:
        of_labels = label_findings(train_examples, eval_examples, [_LabeledRow.of(row) for row in valid or ()])
        # Rows that cannot be used may have the labels that the others lack.
        derived = (
            _FROM_MISSING_LABELS if any(one.kind == "bad_rows" and one.level == "error" for one in findings) else ()
        )
        findings += [one for one in of_labels if one.kind not in derived]
        findings += kind_findings({split: table.label_kind for split, table in tables.items()})
        findings += merge_findings([table.merged for table in tables.values()])
    problems = [problem for table in (train, valid, evaluation) if table is not None for problem in table.problems]
    return Audit(findings=tuple(findings), leaked_ids=overlapping.leaked, bad_rows=bad_rows(problems))


def token_findings(
    splits: Mapping[str, Sequence[E]],
    settings: DataConfig,
    *,
    generated: bool,
    encode: Callable[[E], Sequence[FeaturesLike]],
    tokenizer: Any,
    positions: int,
) -> Iterator[Finding]:
    """Yield what the tokens of the rows show.

    Args:
        splits: Rows of ``train`` and ``eval`` as the task sees them.
        settings: Thresholds.
        generated: The target is text that the model writes, not a class.
        encode: Function from an example to its training sequences.
        tokenizer: A `transformers` tokenizer.
        positions: Longest input of the model in tokens.
    """
    for split, examples in splits.items():
        if examples:
            yield from tokens.length_findings(split, examples, encode, settings, positions)
        yield from _vocabulary(split, examples, tokenizer, generated)


def _bad_rows(tables: Mapping[str, Table], skips: bool) -> Iterator[Finding]:
    """Yield a finding for each split with bad rows: an error, or a warning if they are skipped and are the minority."""
    for split, table in tables.items():
        places = table.bad_places
        if not places:
            continue
        are = "is" if len(places) == 1 else "are"
        are_few = len(places) <= len(table)
        skipped = skips and are_few
        fix = "fix or remove them" + (", or set data.bad_rows: skip" if are_few and not skips else "")
        yield Finding(
            kind="bad_rows",
            level="warning" if skipped else "error",
            message=f"{rows(len(places))} of {split} cannot be used"
            + (f" and {are} skipped" if skipped else "" if are_few else ", more than can be"),
            fix=fix,
            split=split,
            count=len(places),
            ids=some(places),
        )


def _assumed(tables: Mapping[str, Table]) -> Iterator[Finding]:
    """Yield a finding for each assumption by which files were read, such as their encoding."""
    seen = set[str]()
    for split, table in tables.items():
        for form in table.files:
            for sentence in form.assumed:
                message = f"{form.file}: {sentence}"
                if message not in seen:
                    seen.add(message)
                    is_left_out = form.is_unread
                    yield Finding(
                        kind="unread_files" if is_left_out else "assumed_format",
                        level="warning",
                        message=message,
                        fix="write their texts to .txt files" if is_left_out else "check that it is right",
                        split=split,
                    )


def _line_ends(tables: Mapping[str, Table]) -> Iterator[Finding]:
    """Yield one finding if texts had line ends of Windows (or of old Macs)."""
    count = sum(table.line_ends for table in tables.values())
    if count:
        yield Finding(
            kind="line_ends",
            level="info",
            message=f"{rows(count, 'have')} Windows line ends (CR LF), which are read as LF",
            count=count,
        )


def _sizes(train: Sequence[ExampleLike], evaluation: Sequence[ExampleLike], settings: TrainConfig) -> Iterator[Finding]:
    batch = settings.batch_size
    if len(train) < batch:
        yield Finding(
            kind="less_than_a_batch",
            level="warning",
            message=f"{rows(len(train))} in train, fewer than one batch of {batch}",
            fix="lower train.batch_size, or add rows",
            split="train",
            count=len(train),
        )
    for split, examples, words in (
        ("train", train, "full tuning overfits on so few"),
        ("eval", evaluation, "intervals will be wide"),
    ):
        if (split == "train" or examples) and len(examples) < _FEW:
            message = f"{rows(len(examples))} in {split}: {words}"
            yield Finding(kind=f"few_{split}_rows", level="info", message=message, split=split, count=len(examples))


def _boilerplate(train: Table, examples: Sequence[ExampleLike]) -> Iterator[Finding]:
    """Yield a finding about passages that many texts share; prompts and questions share their wording on purpose."""
    if not train or not {"text", "source"}.intersection(train[0].fields):
        return
    learned = [(example.id, str(example.target)) for example in examples if not example.input]
    read = [(example.id, example.input) for example in examples if example.input]
    yield from boilerplate_finding(learned or read, learned=bool(learned))


def _vocabulary(split: str, examples: Sequence[ExampleLike], tokenizer: Any, generated: bool) -> Iterator[Finding]:
    prompted = [example for example in examples if example.input]
    inputs = [example.input for example in prompted]
    yield from tokens.unknown_finding(split, "input", [example.id for example in prompted], inputs, tokenizer)
    if generated:
        ids = [example.id for example in examples]
        targets = [str(example.target) for example in examples]
        yield from tokens.unknown_finding(split, "target", ids, targets, tokenizer)
        yield from tokens.round_trip_finding(split, ids, targets, tokenizer)
        yield from tokens.special_token_findings(split, ids, targets, tokenizer)
        yield from tokens.unread_finding(split, ids, targets, tokenizer)
