"""Packs of a stage as the model gets them, to look at: as numbers, and as one self-contained page.

Read in this order: packs (what there is to see), page (the HTML), tokens (its texts), media (its pictures and sounds).
"""

from omnikit.preview.packs import preview, summary
from omnikit.preview.page import page_of

__all__ = ["page_of", "preview", "summary"]
