"""The frame that all pages share: one file that needs nothing else, no script and no network, light and dark."""

from importlib.resources import files
from string import Template


def fill(package: str, title: str, more_style: str = "", **parts: str) -> str:
    """The page of a package: its page.html filled with these parts, all of them HTML, under its page.css and more."""
    own = files(package)
    body = Template(own.joinpath("page.html").read_text(encoding="utf-8")).substitute(parts, title=title)
    style = own.joinpath("page.css").read_text(encoding="utf-8") + more_style
    frame = Template(files("omnikit").joinpath("pages.html").read_text(encoding="utf-8"))
    return frame.substitute(title=title, style=style, body=body)
