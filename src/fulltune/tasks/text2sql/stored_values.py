"""Read the texts that a database stores, such as names, which questions and queries mention."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fulltune.errors import DataError
from fulltune.tasks.text2sql.execution import Results
from fulltune.tasks.text2sql.schema import schema_of_file

#: Longest text in characters that counts as a name.
_LONGEST = 60


def stored_texts(results: Results, database: Path) -> Iterator[str]:
    """Yield the short texts in the tables of a database, of each column at most as many as a query returns.

    Columns that cannot be read within the limits of a query are left out.

    Args:
        results: Runs the queries.
        database: The SQLite file.
    """
    try:
        tables = schema_of_file(database).tables
    except DataError:  # it is reported where its queries run
        return
    for table in tables:
        source = quoted(table)
        for column in results.execute(str(database), f"SELECT * FROM {source} LIMIT 0").columns:
            cell = f"{source}.{quoted(column)}"
            is_short = f"typeof({cell}) = 'text' AND length({cell}) <= {_LONGEST}"
            query = f"SELECT DISTINCT {cell} FROM {source} WHERE {is_short}"
            for (text,) in results.execute(str(database), query).rows:
                yield str(text)


def quoted(name: str) -> str:
    """Return a name as SQL writes it, which is never read as a text where a table is named before it."""
    return '"' + name.replace('"', '""') + '"'
