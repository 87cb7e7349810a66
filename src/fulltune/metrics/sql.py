"""Metrics for text-to-SQL. The queries were executed before; the metrics read the results in ``values``."""

from __future__ import annotations

from fulltune.metrics.ratios import fraction_of

execution_accuracy = fraction_of(
    "match",
    name="execution_accuracy",
    direction="higher",
    source="same result as the reference query on the same database, columns in their order (docs/text2sql.md); rows "
    "whose reference query fails do not count",
    label="execution accuracy",
    version=2,
)

spider_accuracy = fraction_of(
    "match",
    name="spider_execution_accuracy",
    direction="higher",
    source="same result as the reference query on the same database, columns in any order (Zhong et al. 2020, the test "
    "suites for Spider); rows whose reference query fails do not count",
    label="execution accuracy (Spider)",
)

executes = fraction_of(
    "executes",
    name="executes",
    direction="higher",
    source="the query completed without an error and within the time limit",
    label="fraction that executes",
)

sql_exact_match = fraction_of(
    "exact",
    name="sql_exact_match",
    direction="higher",
    source="equal to the reference query after normalization of both",
    label="exact match",
)

empty_results = fraction_of(
    "empty",
    name="empty_results",
    direction="lower",
    source="counted as correct only because both queries returned no rows: weak evidence, so it is counted separately",
    label="correct with an empty result",
)
