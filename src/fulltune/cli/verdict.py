"""``fulltune verdict``: compare the predictions of any tools."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from fulltune.cli.options import Common, with_common_options


class Format(str, Enum):
    """Forms of the answer."""

    text = "text"
    json = "json"
    markdown = "markdown"
    junit = "junit"
    html = "html"


class Require(str, Enum):
    """Requirements that set the exit code."""

    improved = "improved"
    not_worse = "not-worse"


@with_common_options
def verdict(
    common: Common,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C …]",
            help="JSONL, CSV or Parquet with `id`, `target` and `prediction` (or `score`); or runs, RUN#SYSTEM. A is "
            "the reference.",
        ),
    ],
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="A metric, or a column of numbers.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="COLUMN", help="Rows of one group (document) are not independent.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option("--margin", metavar="X", help="Test that B is not worse by X; 0.01 is a point, or 1%."),
    ] = None,
    require: Annotated[
        Require | None, typer.Option("--require", help="Exit with 3 unless every system is this.")
    ] = None,
    lower: Annotated[
        bool | None,
        typer.Option("--lower-is-better/--higher-is-better", help="A low number is good (for a column of numbers)."),
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--column", metavar="ROLE=NAME", help="id, target, prediction or score.")
    ] = None,
    min_effect: Annotated[
        float, typer.Option("--min-effect", metavar="X", help="Smallest difference that counts.")
    ] = 0.005,
    confidence: Annotated[float, typer.Option("--confidence", help="Confidence level.")] = 0.95,
    form: Annotated[Format, typer.Option("--format", help="Form of the answer.")] = Format.text,
) -> None:
    """Compare predictions on the same rows: is B better than A, worse, or can these rows not tell?

    The tests and words are those of a run. With several systems p-values are adjusted for their number.
    """
    if len(files) < 2:
        raise typer.BadParameter("name at least two files or runs", param_hint="A B")
    named = dict(_pair(text) for text in columns or ())
    with common.answering():
        from fulltune.cli.render import runs
        from fulltune.evaluation.verdict import verdict as compute
        from fulltune.report import verdict as forms

        found = compute(
            *files,
            metric=metric,
            group=group,
            margin=margin,
            require=require.value if require else None,
            lower_is_better=lower,
            columns=named,
            min_effect=min_effect,
            confidence=confidence,
            out=common.out,
        )
    writers = {Format.markdown: forms.markdown, Format.junit: forms.junit, Format.html: forms.html}
    if form in writers and not common.as_json:
        common.write(writers[form](found))
    else:
        common.in_json(form is Format.json).answer(found.to_json(), runs.verdict(found))
    if not found.passed:
        raise typer.Exit(3)


def _pair(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not equals or not role or not name:
        raise typer.BadParameter(f"{text!r} is not ROLE=NAME", param_hint="--column")
    return role, name
