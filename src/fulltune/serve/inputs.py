"""Turn the inputs of a request into examples of the task, or list everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fulltune.data.values import describe
from fulltune.errors import Problem, did_you_mean, shortened
from fulltune.pipeline.loaded_model import LoadedModel
from fulltune.pipeline.predict import Request
from fulltune.serve.limits import Limits
from fulltune.serve.refusals import Refusal
from fulltune.tasks.base import Example


def examples_of(model: LoadedModel, inputs: Sequence[Any], database: str, limits: Limits) -> list[Example]:
    """Return the examples of texts and rows.

    Args:
        model: The model that will answer.
        inputs: Texts, or rows with the input columns.
        database: text2sql: the database of inputs that name none.
        limits: Limits of a request.

    Raises:
        Refusal: Inputs are too many, too long, or not texts or rows of the task; all of them at once.
    """
    if len(inputs) > limits.inputs:
        raise too_many(len(inputs), limits)
    check_lengths(inputs, limits)
    found = [_example(model, value, f"inputs[{number}]", database) for number, value in enumerate(inputs)]
    problems = [problem for one in found if not isinstance(one, Example) for problem in one]
    if problems:
        raise Refusal(422, problems)
    return [one for one in found if isinstance(one, Example)]


def database_of(model: LoadedModel, name: str) -> str:
    """Return the name of the database that a request asks.

    Raises:
        Refusal: The model asks no databases.
    """
    if name and "db_id" not in model.task.inputs:
        expected = f"no database: the task is {model.task.name}"
        raise Refusal(422, Problem(shortened(name), expected, "leave it out", "database"))
    return name


def too_many(count: int, limits: Limits) -> Refusal:
    """Return the refusal of a request with too many inputs."""
    fix = "send several requests; for a file use `fulltune predict`"
    return Refusal(413, Problem(f"{count:,} inputs", f"at most {limits.inputs:,} per request", fix, field="inputs"))


def check_lengths(inputs: Sequence[Any], limits: Limits) -> None:
    """Check that no text is too long.

    Raises:
        Refusal: Texts are too long; all of them at once.
    """
    sizes = [
        (f"inputs[{number}]", len(text))
        for number, value in enumerate(inputs)
        for text in (value.values() if isinstance(value, Mapping) else (value,))
        if isinstance(text, str)
    ]
    expected = f"at most {limits.characters:,}"
    problems = [
        Problem(f"{size:,} characters", expected, "shorten the text, or divide it", where)
        for where, size in sizes
        if size > limits.characters
    ]
    if problems:
        raise Refusal(413, problems)


def _example(model: LoadedModel, value: Any, where: str, database: str) -> Example | list[Problem]:
    task = model.task
    columns = {role: model.config.data.column(role) for role in task.inputs}
    if isinstance(value, str):
        value = {task.inputs[0]: value}
    if not isinstance(value, Mapping):
        expected = f"a text, or a row such as {{{columns[task.inputs[0]]!r}: '…'}}"
        return [Problem(describe(value), expected, "correct the input", where)]
    unknown = [_unknown(name, columns, where) for name in value if name not in {*columns, *columns.values()}]
    if unknown:
        return unknown
    asked = model.config.data.columns_of(task.inputs, value)
    example = Request(task, asked, database).example((where, value))
    if isinstance(example, Example):
        return example
    fields = ", ".join(asked.values())
    return [Problem(example.found, example.expected, example.fix, where, example.field or fields)]


def _unknown(name: str, columns: Mapping[str, str], where: str) -> Problem:
    known = list(dict.fromkeys(columns.values()))
    fix = did_you_mean(name, known) or "leave it out: a request has the columns of the input only"
    return Problem(f"the column {name[:80]!r}", " or ".join(map(repr, known)), fix, where)
