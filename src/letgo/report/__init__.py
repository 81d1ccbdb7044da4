"""What is shown of runs: one HTML page, the terminal's table, and the model card. All from run directories alone."""

from __future__ import annotations

from letgo.report.html import write_report
from letgo.report.verdict import Verdict, verdict

__all__ = ["Verdict", "verdict", "write_report"]
