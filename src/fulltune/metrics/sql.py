"""Text to SQL. The queries were run before: these read what the execution left in ``values``."""

from __future__ import annotations

from fulltune.metrics.ratios import share_of

execution_accuracy = share_of(
    "match",
    name="execution_accuracy",
    direction="higher",
    source="same result as the reference query on the same database, columns in their order (docs/text2sql.md); rows "
    "whose reference query fails do not count",
    label="execution accuracy",
    version=2,
)

spider_accuracy = share_of(
    "match",
    name="spider_execution_accuracy",
    direction="higher",
    source="same result as the reference query on the same database, columns in any order (Zhong et al. 2020, the test "
    "suites for Spider); rows whose reference query fails do not count",
    label="execution accuracy (Spider)",
)

executes = share_of(
    "executes",
    name="executes",
    direction="higher",
    source="the query ran to its end without an error, in time",
    label="share that executes",
)

sql_exact_match = share_of(
    "exact",
    name="sql_exact_match",
    direction="higher",
    source="equal to the reference query after both were normalized",
    label="exact match",
)

empty_results = share_of(
    "empty",
    name="empty_results",
    direction="lower",
    source="counted as right only because both queries returned no row: weak evidence, so it is counted apart",
    label="right by an empty result",
)
