"""Trackers by name, as ``trainer.report_to`` asks for them: those of transformers, none of which opens by itself."""

from __future__ import annotations

from fulltune.config import Config
from fulltune.errors import Problem, did_you_mean


def problems(config: Config) -> list[Problem]:
    """What is wrong with ``trainer.report_to``: a name that nobody knows, or a package that is not there."""
    asked = config.trainer.get("report_to") or "none"
    names = [asked] if isinstance(asked, str) else list(asked)
    if set(names) <= {"none", "all"}:
        return []
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    known, there = sorted(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    found = []
    for name in names:
        if name not in known:
            fix = did_you_mean(str(name), known) or "choose one of these, or none"
            found.append(Problem(f"there is no tracker {name!r}", ", ".join(known), fix, field="trainer.report_to"))
        elif name not in there:
            fix = f"pip install {name.replace('_', '-')}"
            found.append(Problem(f"the tracker {name} is not installed", "", fix, field="trainer.report_to"))
    return found
