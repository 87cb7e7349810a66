"""Count the queries of eval that train has too, under other questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fulltune.data.findings import Finding, some
from fulltune.tasks.base import Example

#: Fraction of the queries of eval from which on a score says more about known queries than about new ones.
MANY = 0.2


def finding(splits: Mapping[str, Sequence[Example]]) -> Finding | None:
    """Return the finding about queries of eval that also occur in train, or None if there are few.

    Queries are equal if they differ at most in white space and the semicolon at the end.

    Args:
        splits: Rows by the name of their split.
    """
    known = set(map(_key, splits.get("train", ())))
    scored = splits.get("eval", ())
    repeated = [one.id for one in scored if _key(one) in known]
    if not repeated or len(repeated) < MANY * len(scored):
        return None
    return Finding(
        kind="repeated_queries",
        level="warning",
        message=f"{len(repeated):,} of the {len(scored):,} queries of eval also occur in train: the score says how "
        "well known queries are recognized more than how well new ones are written",
        fix="for a score of new queries, give the rows of each query one value of a column, and name it in data.group",
        split="eval",
        count=len(repeated),
        ids=some(repeated),
        details={"of": len(scored)},
    )


def _key(example: Example) -> tuple[str, str]:
    return example.meta["db_id"], " ".join(str(example.target).split()).rstrip("; ")
