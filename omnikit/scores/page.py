"""The report as one HTML page that needs nothing else. Whatever comes from data or a model is escaped."""

import json
from collections.abc import Sequence
from html import escape

from omnikit.evaluate.examples import RIGHT, Example
from omnikit.pages import fill
from omnikit.report.cards import asked, mark, style
from omnikit.scores.tables import ABSENT, OURS, Beside, Evaluated, Table, beside


def page_of(name: str, evaluated: Sequence[Evaluated], versions: str) -> str:
    """The page of the run `name`: the papers' tables with a row of its own, then each benchmark with answers."""
    number, questions = len(evaluated), sum(one.score["questions"] for one in evaluated)
    return fill(
        __package__,
        title=escape(name),
        more_style=style(),
        summary=f"{number} benchmark{'s' if number != 1 else ''}, {questions:,} questions",
        tables="".join(map(_table, beside(evaluated))),
        benchmarks="".join(map(_benchmark, evaluated)),
        versions=escape(versions),
    )


def _table(one: Beside) -> str:
    table = one.table
    head = "".join(f'<th class="num">{escape(label)}</th>' for label in table.columns)
    rows = "".join(
        f"<tr><th>{escape(model)}</th>"
        + "".join(f'<td class="num">{table.shown(value, column)}</td>' for column, value in enumerate(values))
        + "</tr>"
        for model, values in table.rows.items()
    )
    own = "".join(_own(table, column, found) for column, found in enumerate(one.own))
    return f"""<section class="paper"><h2>{escape(table.title)}</h2><p class="lead">{escape(table.source)}</p>
<div class="scroll"><table><thead><tr><th>Model</th>{head}</tr></thead>{rows}
<tr class="own"><th>{OURS}</th>{own}</tr></table></div></section>"""


def _own(table: Table, column: int, found: tuple[float, Evaluated] | None) -> str:
    if found is None:
        return f'<td class="num">{ABSENT}</td>'
    value, evaluated = found
    is_part = ":" in [*table.columns.values()][column]
    score = evaluated.score
    below = (
        f"{score['questions']:,}" if is_part else f"{score['low']:.1f} to {score['high']:.1f}; {score['questions']:,}"
    )
    return (
        f'<td class="num" title="{escape(evaluated.sentence)}"><a href="#{escape(evaluated.benchmark)}">'
        f"<b>{table.shown(value, column)}</b></a><small>{below}{' *' if score['notes'] else ''}</small></td>"
    )


def _benchmark(one: Evaluated) -> str:
    score = one.score
    parts = "".join(
        f'<tr><th>{escape(part)}</th><td class="num">{value:.1f}</td></tr>' for part, value in score["parts"].items()
    )
    left_out = "".join(
        f"<li>{escape(bad['id'])}: {escape(bad['kind'])}: {escape(bad['why'])}</li>" for bad in score["left_out"]
    )
    lower = ", lower is better" if score["better"] == "lower" else ""
    return f"""<section id="{escape(one.benchmark)}"><h2>{escape(score["title"])}</h2>
<p class="lead">{escape(one.sentence)}{lower}</p>
{_folded(f"{len(score['parts'])} parts", f"<table>{parts}</table>") if parts else ""}
{_folded("left out", f"<ul>{left_out}</ul>") if left_out else ""}
<div class="cards">{"".join(map(_card, one.examples))}</div></section>"""


def _folded(title: str, inner: str) -> str:
    return f"<details><summary>{title}</summary>{inner}</details>"


def _card(one: Example) -> str:
    question, grade = one.question, one.grade
    reference = question.reference
    reference = reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)
    taken = "" if grade.taken == one.answer.strip() else f"<dt>Taken as</dt><dd>{_said(grade.taken)}</dd>"
    note = f"<dt>Judge</dt><dd>{_said(grade.note)}</dd>" if grade.note else ""
    good = grade.right >= RIGHT
    word = {0.0: "wrong", 1.0: "right"}.get(grade.right, f"{grade.right:.2f}")
    return f"""<article class="card {"right" if good else "wrong"}" title="{escape(question.id)}">
<header>{escape(question.category)} {mark(good, word, word)}</header>
<div class="asked">{asked(question.sample)}</div>
<dl><dt>Expected</dt><dd>{_said(reference)}</dd><dt>Answered</dt><dd class="given">{_said(one.answer)}</dd>
{taken}{note}</dl></article>"""


def _said(text: str) -> str:
    return f"<q>{escape(text)}</q>" if text.strip() else '<span class="muted">nothing</span>'
