"""Long lists of test parameters: a few run in ``make test``, the others in ``make slow``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def often(values: Iterable[Any], is_often: Callable[[Any], bool]) -> list[Any]:
    """Return the values of a parameter (or tuples of several); those that are not wanted often are marked as slow."""
    return [value if is_often(value) else _slow(value) for value in values]


def _slow(value: Any) -> Any:
    parts = value if isinstance(value, tuple) else (value,)
    return pytest.param(*parts, marks=pytest.mark.slow)
