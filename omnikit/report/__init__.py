"""What a run has become: `report.json` for programs, and `report.html`, one self-contained page, for people.

Read in this order: results (what both files hold), page (the HTML), cards (its samples), charts (its loss curves).
"""

from omnikit.report.results import REFERENCES, report

__all__ = ["REFERENCES", "report"]
