"""What is wrong with the data, told before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fulltune.config import Config
from fulltune.data import tokens
from fulltune.data.findings import Audit, BadRow, ExampleLike, Finding, bad_rows, rows, some
from fulltune.data.labels import kind_findings, label_findings
from fulltune.data.load import Row, Table
from fulltune.data.overlap import Entry, overlap
from fulltune.data.split import input_text
from fulltune.data.tokens import E, FeaturesLike

__all__ = ["Audit", "BadRow", "Finding", "audit"]

#: Fewer rows than this to train on, or to score, are worth a word.
_FEW = 50


@dataclass(frozen=True)
class _Labelled:
    """A row of ``valid`` with its labels."""

    id: str
    input: str
    target: str | tuple[str, ...]

    @classmethod
    def of(cls, row: Row) -> _Labelled:
        label = row.fields["label"] if "label" in row.fields else tuple(row.fields["labels"])
        return cls(row.id, input_text(row.fields), label)


def audit(
    *,
    train: Table,
    evaluation: Table,
    train_examples: Sequence[E],
    eval_examples: Sequence[E],
    config: Config,
    valid: Table | None = None,
    encode: Callable[[E], Sequence[FeaturesLike]] | None = None,
    tokenizer: Any = None,
) -> Audit:
    """Look at the data from every side that has been seen to break a run.

    Args:
        train, evaluation, valid: The tables as loaded, with the problems of their bad rows.
        train_examples, eval_examples: Their rows as the task sees them.
        config: Thresholds, the batch size, and whether leaks are allowed.
        encode: An example → its training sequences; without it, lengths and truncation are not looked at.
        tokenizer: A `transformers` tokenizer; without it, unknown tokens and round trips are not looked at.
    """
    fields = train[0].fields if train else {}
    classes = "label" in fields or "labels" in fields
    overlapping = overlap(
        [Entry.of(example) for example in train_examples],
        [Entry(row.id, input_text(row.fields)) for row in valid or ()],
        [Entry.of(example) for example in eval_examples],
        allow_leaks=config.data.allow_leaks,
        one_answer=classes or "sql" in fields,
    )
    findings = [*_bad_rows(train, valid, evaluation), *_sizes(train_examples, eval_examples, config)]
    findings += overlapping.findings
    if classes:
        findings += label_findings(train_examples, eval_examples, [_Labelled.of(row) for row in valid or ()])
        tables = {"train": train, "eval": evaluation} | ({} if valid is None else {"valid": valid})
        findings += kind_findings({split: table.label_kind for split, table in tables.items()})
    for split, examples in (("train", train_examples), ("eval", eval_examples)):
        if encode is not None and examples:
            findings += tokens.length_findings(split, examples, encode, config)
        if tokenizer is not None:
            findings += _vocabulary(split, examples, tokenizer, generated=not classes)
    problems = [problem for table in (train, valid, evaluation) if table is not None for problem in table.problems]
    return Audit(findings=tuple(findings), leaked_ids=overlapping.leaked, bad_rows=bad_rows(problems))


def _bad_rows(train: Table, valid: Table | None, evaluation: Table) -> Iterator[Finding]:
    for split, table in (("train", train), ("valid", valid), ("eval", evaluation)):
        if table is not None and table.problems:
            places = list(dict.fromkeys(problem.where for problem in table.problems))
            yield Finding(
                kind="bad_rows",
                level="error",
                message=f"{rows(len(places))} of {split} cannot be used",
                fix="mend or remove them",
                split=split,
                count=len(places),
                ids=some(places),
            )


def _sizes(train: Sequence[ExampleLike], evaluation: Sequence[ExampleLike], config: Config) -> Iterator[Finding]:
    batch = config.train.batch_size
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
        if len(examples) < _FEW:
            message = f"{rows(len(examples))} in {split}: {words}"
            yield Finding(kind=f"few_{split}_rows", level="info", message=message, split=split, count=len(examples))


def _vocabulary(split: str, examples: Sequence[ExampleLike], tokenizer: Any, generated: bool) -> Iterator[Finding]:
    """``generated``: the target is text that the model writes, not the name of a class."""
    asked = [example for example in examples if example.input]
    yield from tokens.unknown_finding(split, "input", [e.id for e in asked], [e.input for e in asked], tokenizer)
    if generated:
        ids, targets = [example.id for example in examples], [str(example.target) for example in examples]
        yield from tokens.unknown_finding(split, "target", ids, targets, tokenizer)
        yield from tokens.round_trip_finding(split, ids, targets, tokenizer)
        yield from tokens.special_token_findings(split, ids, targets, tokenizer)
        yield from tokens.unread_finding(split, ids, targets, tokenizer)
