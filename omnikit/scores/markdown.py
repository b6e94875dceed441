"""The report as Markdown: tables and figures, for a README or a model card."""

from collections.abc import Iterable, Sequence

from omnikit.scores.tables import ABSENT, OURS, Beside, Evaluated, beside


def markdown_of(name: str, evaluated: Sequence[Evaluated]) -> str:
    """The scores of the run `name`, and the papers' tables with a row of its own."""
    blocks = [f"# {_plain(name)}: scores", _scores(evaluated)]
    blocks += [_table(one) for one in beside(evaluated)]
    blocks += [parts for one in evaluated if (parts := _parts(one))]
    return "\n\n".join(blocks) + "\n"


def _scores(evaluated: Sequence[Evaluated]) -> str:
    head = ["benchmark", "score", "95 % interval", "questions", "remarks"]
    rows = []
    for one in evaluated:
        score = one.score
        value = f"{score['value']:.1f} {score['unit']}"
        remarks = "; ".join(score["notes"])
        rows.append(
            [score["title"], value, f"{score['low']:.1f} to {score['high']:.1f}", f"{score['questions']:,}", remarks]
        )
    return _rows(head, rows)


def _table(one: Beside) -> str:
    table = one.table
    rows = [
        [model, *(table.shown(value, column) for column, value in enumerate(values))]
        for model, values in table.rows.items()
    ]
    own = [table.shown(None if found is None else found[0], column) for column, found in enumerate(one.own)]
    rows.append([f"**{OURS}**", *(f"**{figure}**" if figure != ABSENT else figure for figure in own)])
    return f"## {table.title}\n\n{table.source}\n\n{_rows(['model', *table.columns], rows)}"


def _parts(one: Evaluated) -> str:
    parts = one.score["parts"]
    if not parts:
        return ""
    return f"## {_plain(one.score['title'])}, in parts\n\n" + _rows(
        ["part", "figure"], [[name, f"{value:.1f}"] for name, value in parts.items()]
    )


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(text: str) -> str:
    """In one line and one cell."""
    return " ".join(text.split()).replace("|", "\\|")
