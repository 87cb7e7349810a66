"""Assertions for pytest: a model has to be better than another, or not worse.

In a file with tests:

    from fulltune.testing import assert_not_worse

    def test_the_new_model_is_not_worse() -> None:
        assert_not_worse("new.jsonl", "old.jsonl", metric="accuracy", margin=0.02)
"""

from __future__ import annotations

from typing import Any

from fulltune.evaluation.verdict import MARGIN, verdict
from fulltune.records.verdict import PairVerdict, Requirement


def assert_not_worse(new: Any, old: Any, *, margin: float = MARGIN, **options: Any) -> PairVerdict:
    """Assert that the answers of a system are not worse than those of another by a margin or more.

    That no difference is detected is not enough: few rows never detect one.

    Args:
        new, old: Files, rows in memory, or runs, as in :func:`fulltune.verdict`.
        margin: Smallest loss that matters: 0.01 is a point of a score between 0 and 1, and 1% of any other.
        options: Other arguments of :func:`fulltune.verdict`, such as ``metric`` and ``group``.

    Raises:
        AssertionError: It may be worse by that much; the message has the numbers.
        FulltuneError: The files cannot be compared.
    """
    return _assert(new, old, "not-worse", margin=margin, **options)


def assert_improved(new: Any, old: Any, **options: Any) -> PairVerdict:
    """Assert that the answers of a system are better than those of another.

    Args:
        new, old, options: As in :func:`assert_not_worse`.

    Raises:
        AssertionError: It is worse, or these rows cannot tell; the message has the numbers.
        FulltuneError: The files cannot be compared.
    """
    return _assert(new, old, "improved", **options)


def _assert(new: Any, old: Any, require: Requirement, **options: Any) -> PairVerdict:
    __tracebackhide__ = True  # pytest shows the line of the test
    found = verdict(old, new, require=require, **options)
    assert isinstance(found, PairVerdict)
    if not found.passed:
        raise AssertionError("\n".join((found.headline, *found.notes)))
    return found
