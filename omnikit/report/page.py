"""The page of a report: one HTML file that needs nothing else, no script and no network.

Whatever comes from a recipe, a data set or a model is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from omnikit.heldout import Table
from omnikit.pages import fill
from omnikit.report.cards import Card, mark, samples, style
from omnikit.report.charts import Curve, chart, in_order, legend


def page_of(result: Mapping[str, Any], lines: Mapping[str, Mapping[str, Curve]], cards: Sequence[Card]) -> str:
    """The page of a report. `lines` are the loss curves of each stage."""
    return fill(
        __package__,
        title=escape(result["recipe"]),
        more_style=style(),
        summary=_in_short(result),
        heldout=_heldout(result["heldout"]) if result["heldout"] else "",
        training=_training(result["stages"], lines),
        samples=samples(cards) if cards else "",
        versions=" · ".join(
            f"{escape(key)} {escape(value)}" for key, value in {**result["machine"], **result["versions"]}.items()
        ),
    )


def _in_short(result: Mapping[str, Any]) -> str:
    stages, tables = result["stages"].values(), result["heldout"].values()
    steps, planned = (sum(stage[key] for stage in stages) for key in ("steps", "planned"))
    made = f"{steps:,} steps" if steps == planned else f"{steps:,} of {planned:,} steps"
    text = f"{_number(len(stages), 'stage')}, {made}, {_time(result['minutes'] * 60)} of training"
    if tables:
        text += f"; measured on {_number(sum(table['samples'] for table in tables), 'held-out sample')}"
    aimed = [table["met"] for table in tables if table["met"] is not None]
    return f"{text}. {sum(aimed)} of {_number(len(aimed), 'target')} met." if aimed else f"{text}."


# ----------------------------------------------------------------------------------------------------- held-out table


def _heldout(tables: Mapping[str, Table]) -> str:
    rows = "".join(_set(name, table) for name, table in tables.items())
    return f"""<section id="heldout"><h2>Held-out data</h2>
<p class="lead">Questions that were never trained on. <b>Chance</b> is the score of giving the most frequent answer to
each kind of question; <b>blind</b> is this model with every picture, clip and sound replaced by an empty one. What is
right then was guessed.</p>
<p class="legend"><span class="key"><i class="fill"></i>score</span>
<span class="key"><i class="chance"></i>chance</span>
<span class="key"><i class="blind"></i>blind</span><span class="key"><i class="aim"></i>target</span></p>
<table class="sets"><thead><tr><th>Set</th><th>0 to 100%</th><th class="num">Score</th><th>Target</th>
<th class="num">Chance</th><th class="num">Blind</th></tr></thead>{rows}</table></section>"""


def _set(name: str, table: Table) -> str:
    lower = table["better"] == "lower"
    unit, better = ("words wrong", ", lower is better") if lower else ("right", "")
    target = '<span class="muted">none</span>'
    if table["target"] is not None:
        met = mark(table["met"], "met", "missed")
        target = f"{'≤' if lower else '≥'} {_share(table['target'])} {met}"
    return f"""<tbody><tr>
<th scope="row">{escape(name)}<small>{_number(table["samples"], "sample")}{better}</small></th>
<td class="wide">{_bar(table, bool(table["modalities"]), table["target"])}</td>
<td class="num score" data-label="Score">{_share(table["score"])}<small>{unit}</small></td>
<td data-label="Target">{target}</td><td class="num" data-label="Chance">{_share(table["chance"])}</td>
<td class="num" data-label="Blind">{_blind(table, table)}</td></tr>
<tr class="more"><td colspan="6">{_kinds(table, lower)}{_references(table)}</td></tr></tbody>"""


def _references(table: Table) -> str:
    others = " · ".join(f"{escape(name)} <b>{_share(score)}</b>" for name, score in table["references"].items())
    return f'<p class="references">other systems, same samples: {others}</p>' if others else ""


def _kinds(table: Table, lower: bool) -> str:
    kinds = sorted(table["kinds"], key=lambda kind: table["kinds"][kind]["score"], reverse=not lower)
    if len(kinds) == 1:
        return f'<span class="muted">one kind: {escape(kinds[0])}</span>'
    ends = (f"{escape(kind)} {_share(table['kinds'][kind]['score'])}" for kind in (kinds[0], kinds[-1]))
    best, worst = ends
    rows = "".join(
        f'<tr><th scope="row">{escape(kind)}</th><td class="wide">{_bar(row, bool(table["modalities"]))}</td>'
        f'<td class="num">{_share(row["score"])}</td><td class="num">{_share(row["chance"])}</td>'
        f'<td class="num">{_blind(row, table)}</td><td class="num">{row["samples"]}</td></tr>'
        for kind, row in ((kind, table["kinds"][kind]) for kind in kinds)
    )
    return f"""<details><summary>{len(kinds)} kinds: best {best}, worst {worst}</summary>
<table class="kinds"><thead><tr><th>Kind</th><th></th><th class="num">Score</th><th class="num">Chance</th>
<th class="num">Blind</th><th class="num">Samples</th></tr></thead><tbody>{rows}</tbody></table></details>"""


def _blind(row: Mapping[str, Any], table: Table) -> str:
    if table["modalities"]:
        return _share(row["blind"])
    return '<span class="muted" title="there is nothing but text to hide">&ndash;</span>'


def _bar(row: Mapping[str, Any], blind: bool, target: float | None = None) -> str:
    """The numbers of the row as a picture; who does not see it has them in the cells beside it."""
    marks = {"chance": row["chance"], "blind": row["blind"] if blind else None, "aim": target}
    inner = "".join(
        f'<i class="{name}" style="left:{_percent(value)}"></i>' for name, value in marks.items() if value is not None
    )
    return (
        f'<div class="bar" aria-hidden="true"><i class="fill" style="width:{_percent(row["score"])}"></i>{inner}</div>'
    )


# ------------------------------------------------------------------------------------------------------------ training


def _training(stages: Mapping[str, Any], lines: Mapping[str, Mapping[str, Curve]]) -> str:
    groups = in_order({group: None for curves in lines.values() for group in curves})
    panels = "".join(
        f"""<article class="panel"><h3>{escape(name)}<small>{_made(stage)}</small></h3>
<p class="rules">{_rules(stage["train"])}</p>{chart(lines[name], groups, stage["planned"])}
<p class="final">{_final(stage, groups)}</p></article>"""
        for name, stage in stages.items()
    )
    return f"""<section id="training"><h2>Training</h2>
<p class="lead">The loss of each stage over its steps, smoothed, by what the samples hold. Above it the stage's rules:
what was trained at which learning rate, and what stayed frozen.</p>
{legend(groups)}<div class="panels">{panels}</div></section>"""


def _made(stage: Mapping[str, Any]) -> str:
    of = "" if stage["steps"] == stage["planned"] else f" of {stage['planned']:,}"
    return f"{stage['steps']:,}{of} steps · {_time(stage['seconds'])}"


def _rules(train: Mapping[str, Any]) -> str:
    chips = []
    for path, rule in train.items():
        rate = "frozen" if rule == "frozen" else f"{rule['lr']:g}"
        # A path may break after its dots, nowhere else.
        shown = escape(path).replace(".", ".<wbr>")
        chips.append(f'<span class="{"chip cold" if rule == "frozen" else "chip"}">{shown} <b>{rate}</b></span>')
    return " ".join(chips)


def _final(stage: Mapping[str, Any], groups: Sequence[str]) -> str:
    losses = {group: stage["losses"][group] for group in groups if group in stage["losses"]}
    entries = (f"<span>{escape(group)} <b>{loss:.3f}</b></span>" for group, loss in losses.items())
    return f"at the end: {', '.join(entries)}" if losses else "no step yet"


# --------------------------------------------------------------------------------------------------------------- words


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _percent(value: float) -> str:
    """A position in a bar: what exceeds 1 ends at the border."""
    return f"{min(max(value, 0.0), 1.0):.1%}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
