"""Check the trackers that ``trainer.report_to`` names. They are those of transformers; none is active by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fulltune.errors import Problem, did_you_mean


def problems(trainer: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of ``trainer.report_to``: unknown trackers, and trackers that are not installed.

    Args:
        trainer: The section ``trainer``.
    """
    asked = trainer.get("report_to") or "none"
    names = [asked] if isinstance(asked, str) else list(asked)
    if set(names) <= {"none", "all"}:
        return []
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    known = sorted(INTEGRATION_TO_CALLBACK)
    installed = get_available_reporting_integrations()
    problems = []
    for name in names:
        if name not in known:
            fix = did_you_mean(str(name), known) or "choose one of these, or none"
            problems.append(Problem(f"there is no tracker {name!r}", ", ".join(known), fix, field="trainer.report_to"))
        elif name not in installed:
            fix = f"install it: pip install {name.replace('_', '-')}"
            problems.append(Problem(f"the tracker {name} is not installed", "", fix, field="trainer.report_to"))
    return problems
