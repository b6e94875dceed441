"""What `omnikit data lint` finds out: what data there are, what is wrong with them, what the stages make of them.

Read in this order: records (of one record), sources (of one source), stages (of one stage), recipes (of them all).
"""

from omnikit.linting.recipes import lint
from omnikit.linting.sources import KINDS

__all__ = ["KINDS", "lint"]
