"""The style of the pages: one palette, whole in light and in dark, in which text can be read."""

import re
from importlib.resources import files

import pytest

from omnikit.pages import fill


def style_of(package):
    """The style of a package's page, without the part of the text."""
    names = re.findall(r"\$(\w+)", (files(package) / "page.html").read_text(encoding="utf-8"))
    return re.search(r"<style>(.*)</style>", fill(package, **dict.fromkeys(["title", *names], "")), re.DOTALL)[1]


def palette(style):
    """(the colours of the light scheme, those of the dark one), as (name, value) in order."""
    blocks = re.findall(r":root \{([^}]*)\}", style)
    assert len(blocks) == 4
    found = [re.findall(r"(--\w+): (#\w+);", block) for block in blocks]
    return found[0] + found[2], found[1] + found[3]


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    levels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (level / 12.92 if level <= 0.03928 else ((level + 0.055) / 1.055) ** 2.4 for level in levels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("package", ["omnikit.preview", "omnikit.report"])
def test_a_page_defines_each_of_its_colours_once_for_light_and_once_for_dark(package):
    style = style_of(package)
    light, dark = ([name for name, _ in colours] for colours in palette(style))
    assert len(set(light)) == len(light) and sorted(light) == sorted(dark)
    by_class = set(re.findall(r"\.\w+ \{ (--\w+):", style))
    assert set(re.findall(r"var\((--\w+)\)", style)) == set(light) | by_class


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_what_all_pages_say_can_be_read(scheme):
    colours = dict(palette(style_of("omnikit.report"))[scheme])
    for text in ("--text", "--muted", "--bad"):
        for ground in ("--page", "--panel", "--track"):
            low, high = sorted(luminance(colours[name]) for name in (text, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{text} on {ground}"  # WCAG 2.2, 1.4.3
