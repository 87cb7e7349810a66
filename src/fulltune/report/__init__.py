"""Render a record as one self-contained HTML file.

:func:`render` builds the page from objects, :func:`write_report` from a run folder. Neither imports torch, opens a
socket, or needs other files than those of the run.
"""

from __future__ import annotations

from fulltune.report.files import write_report
from fulltune.report.page import render

__all__ = ["render", "write_report"]
