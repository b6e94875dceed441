"""The scores of an evaluation beside the papers' own tables, as one HTML page or as Markdown."""

from omnikit.scores.markdown import markdown_of
from omnikit.scores.page import page_of
from omnikit.scores.tables import Evaluated

__all__ = ["Evaluated", "markdown_of", "page_of"]
