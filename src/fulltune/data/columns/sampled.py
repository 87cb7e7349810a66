"""Describe the columns of a source by its first rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from fulltune.config import DataSource
from fulltune.data.columns.profile import SAMPLE, Profile, profiles
from fulltune.data.folders import DOCUMENT_COLUMNS
from fulltune.data.raw import Options
from fulltune.data.read import open_source, source_name
from fulltune.errors import DataError, Problem


def columns_of(
    source: DataSource, split: str = "train", most: int = SAMPLE, options: Options | None = None
) -> tuple[Profile, ...]:
    """Return what the columns of a source hold, by its first rows.

    Raises:
        DataError: The source cannot be read, has no rows, or a row in place of the column names.
    """
    problems = list[Problem]()
    opened = open_source(source, split, options=options or Options())
    if opened.doubt is not None and not set(opened.columns or ()) <= set(DOCUMENT_COLUMNS):
        raise DataError(opened.doubt)

    def good() -> Iterator[Mapping[str, Any]]:
        for item in islice(opened.rows, most):
            if isinstance(item, Problem):
                problems.append(item)
            elif isinstance(item, tuple):
                yield item[1]

    columns = profiles(good())
    if not columns:
        raise DataError(problems or [Problem("no rows", "at least one", "check the file", source_name(source))])
    return columns
