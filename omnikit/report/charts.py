"""Loss curves as inline SVG, and the smoothing that their numbers share."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Curve = tuple[list[int], list[float]]
"""Steps, and the loss at each."""

WIDTH, HEIGHT = 320, 176
LEFT, RIGHT, TOP, BOTTOM = 30, 310, 10, 152
DIGIT = 5.8
"""Width of a digit of a tick's label."""
POINTS = 120
COLOURS = 8
"""Series colours in page.css: the classes c0 to c7."""


def curves(records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """The smoothed loss of each modality group, from a stage's lines of metrics.jsonl."""
    found: dict[str, Curve] = {}
    for record in records:
        for group, loss in record["losses"].items():
            steps, losses = found.setdefault(group, ([], []))
            steps.append(record["step"])
            losses.append(loss)
    return {group: (found[group][0], smooth(found[group][1])) for group in in_order(found)}


def smooth(values: Sequence[float]) -> list[float]:
    """Means over a window of a twentieth of the values to either side, narrower towards the first, where loss falls
    steeply. The last is the mean of the last twentieth: a run's final loss."""
    reach = len(values) // 20
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    windows = [(max(i - reach, 0), min(i + min(reach, i) + 1, len(values))) for i in range(len(values))]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in windows]


def in_order(groups: Mapping[str, object]) -> list[str]:
    """Groups of few modalities first, "text" before all."""
    return sorted(groups, key=lambda group: (group != "text", group.count("+"), group))


def legend(groups: Sequence[str]) -> str:
    """One swatch a group; a group's colour is its place in `groups`."""
    entries = (f'<span class="key"><i class="{_colour(i)}"></i>{escape(g)}</span>' for i, g in enumerate(groups))
    return f'<p class="legend">{"".join(entries)}</p>'


def chart(lines: Mapping[str, Curve], groups: Sequence[str], steps: int) -> str:
    """A stage's curves over its `steps` steps, linear axes from 0."""
    top = max((max(losses) for _, losses in lines.values()), default=1.0) or 1.0
    left = min((first[0] for first, _ in lines.values()), default=0)
    across, up = [tick for tick in _ticks(steps) if tick == int(tick)], _ticks(top)
    if up[-1] < top:
        up.append(round(up[-1] + up[1], 10))
    top = up[-1]
    margin = max(LEFT, 9 + DIGIT * max(len(f"{tick:g}") for tick in up))

    def x(step: float) -> float:
        return margin + (RIGHT - margin) * step / max(steps, 1)

    def y(loss: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * loss / top

    parts = []
    for tick in up:
        parts.append(f'<line class="grid" x1="{margin:g}" x2="{RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="end" x="{margin - 5:g}" y="{y(tick) + 3.5:.1f}">{tick:g}</text>')
    for tick in across:
        anchor = "end" if x(tick) > RIGHT - 12 else "middle"
        at = x(tick) + 6 if anchor == "end" else x(tick)
        parts.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>')
        parts.append(f'<text class="{anchor}" x="{at:.1f}" y="{BOTTOM + 16}">{_short(tick)}</text>')
    parts.append(f'<line class="axis" x1="{margin:g}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    for group, (at, losses) in lines.items():
        chosen = sorted({round(i * (len(at) - 1) / (POINTS - 1)) for i in range(POINTS)})
        points = " ".join(f"{x(at[i]):.1f},{y(losses[i]):.1f}" for i in chosen)
        colour = _colour(groups.index(group))
        shape = f'polyline class="{colour}" points="{points}"'
        if len(at) == 1:
            shape = f'circle class="{colour}" cx="{x(at[0]):.1f}" cy="{y(losses[0]):.1f}" r="2.5"'
        parts.append(f"<{shape}><title>{escape(group)}</title></{shape.split()[0]}>")
    spoken = ", ".join(f"{group} {losses[0]:.2f} to {losses[-1]:.2f}" for group, (_, losses) in lines.items())
    words = f"Loss from step {left} to {steps}: {spoken}" if lines else "No step yet"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'


def _colour(place: int) -> str:
    """The classes of the group at `place`; a second round through the colours is dashed."""
    return f"c{place % COLOURS}" + (" dashed" if place >= COLOURS else "")


def _ticks(top: float) -> list[float]:
    """Three to six round numbers from 0 up to at most `top`."""
    rough = top / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= rough * 0.8)
    return [round(index * step, 10) for index in range(int(top / step + 1e-9) + 1)]


def _short(number: float) -> str:
    return f"{number / 1000:g}k" if number >= 10_000 else f"{number:g}"
