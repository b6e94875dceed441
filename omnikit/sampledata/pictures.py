"""Figures in pixels: 64x64 pictures, drawn at four times the size and averaged down, which smooths the edges."""

import math
from random import Random

from PIL import Image, ImageDraw

from .scenes import Figure, Picture

SIDE = 64
FINE = 4
RADIUS = {"small": 8.0, "large": 13.0}
PAINT = {
    "red": (222, 38, 38),
    "green": (36, 160, 60),
    "blue": (38, 84, 226),
    "yellow": (246, 202, 20),
    "purple": (158, 48, 190),
    "black": (24, 24, 24),
}
Colour = tuple[int, int, int]


def draw_picture(picture: Picture, look: str) -> Image.Image:
    """Returns the picture in RGB; `look` seeds what no question asks about: tone, exact place and exact size."""
    random = Random(look)
    canvas = blank(random)
    for figure, size, height, side in picture.placed:
        radius = RADIUS[size] * random.uniform(0.93, 1.07)
        slack = min(2.0, SIDE / 4 - radius - 1.0)  # a figure keeps inside its quarter, whatever the jitter
        centre = tuple(SIDE * quarter + random.uniform(-slack, slack) for quarter in _quarter(height, side))
        paint_figure(canvas, figure, centre, radius, tint(figure, random))
    return canvas.reduce(FINE)


def blank(random: Random) -> Image.Image:
    """Returns an empty light canvas of a random tone, FINE times too large."""
    level = random.randint(224, 246)
    tone = tuple(min(255, level + random.randint(-6, 6)) for _ in range(3))
    return Image.new("RGB", (SIDE * FINE, SIDE * FINE), tone)


def tint(figure: Figure, random: Random) -> Colour:
    """Returns a shade close to the figure's colour."""
    red, green, blue = (min(255, max(0, level + random.randint(-12, 12))) for level in PAINT[figure.colour])
    return red, green, blue


def paint_figure(canvas: Image.Image, figure: Figure, centre: tuple[float, ...], radius: float, colour: Colour) -> None:
    """Paints one figure; centre and radius are in pixels of the finished picture."""
    pen = ImageDraw.Draw(canvas)
    x, y = (FINE * place for place in centre)
    reach = FINE * radius
    if figure.shape == "circle":
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
        return
    corners = [(x + reach * right, y + reach * down) for right, down in OUTLINES[figure.shape]]
    pen.polygon(corners, fill=colour)


def _quarter(height: str, side: str) -> tuple[float, float]:
    return (0.25 if side == "left" else 0.75, 0.25 if height == "top" else 0.75)


def _star() -> list[tuple[float, float]]:
    corners = []
    for corner in range(10):
        angle, reach = math.pi * corner / 5, 0.42 if corner % 2 else 1.08
        corners.append((reach * math.sin(angle), 0.05 - reach * math.cos(angle)))
    return corners


def _cross(arm: float = 0.34) -> list[tuple[float, float]]:
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    turns = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]
    return [(a * x + b * y, c * x + d * y) for a, b, c, d in turns for x, y in quarter]


OUTLINES = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)],
    "star": _star(),
    "cross": _cross(),
}
"""Corners in units of the radius, y downwards."""
