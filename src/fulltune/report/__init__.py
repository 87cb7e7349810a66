"""Record in, one self-contained HTML file out.

:func:`render` makes the page from objects, :func:`write_report` from a run folder. Neither imports torch, opens a
socket, or needs anything but the run's own files.
"""

from __future__ import annotations

from fulltune.report.files import write_report
from fulltune.report.page import render

__all__ = ["render", "write_report"]
