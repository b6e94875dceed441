"""Scores beside the papers' tables: what stands in which column, and that nothing of a model becomes markup."""

import re

import pytest

from omnikit.component import Sample, Turn
from omnikit.evaluate.benchmark import Grade, Question
from omnikit.evaluate.examples import Example, chosen
from omnikit.scores import Evaluated, markdown_of, page_of
from omnikit.scores.tables import ABSENT, beside, papers_tables


def score(title="MMLU", value=61.25, parts=None, **more):
    told = {"title": title, "value": value, "low": 58.0, "high": 64.5, "unit": "%", "better": "higher"}
    return {**told, "questions": 1234, "parts": parts or {}, "notes": [], "left_out": [], **more}


def test_every_column_is_a_benchmark_that_there_is_and_every_row_is_whole(registry):
    known = set(registry.types("benchmark"))
    for table in papers_tables():
        assert {at.partition(":")[0] for at in table.columns.values()} <= known, table.title
        assert all(len(row) == len(table.columns) for row in table.rows.values()), table.title
        assert any(name.startswith("Baichuan-Omni") for name in table.rows)
    shown = {at.partition(":")[0] for table in papers_tables() for at in table.columns.values()}
    assert known <= shown, "a benchmark of the paper has its place in a table"


def test_a_mean_that_was_worked_out_is_the_mean():
    [table] = [table for table in papers_tables() if "KeSpeech" in table.title]
    for mean, *each in table.rows.values():
        assert mean == pytest.approx(sum(each) / len(each), abs=0.051)


def test_only_tables_in_which_the_run_has_a_figure_are_shown():
    found = beside([Evaluated("mmlu", score()), Evaluated("airbench_chat", score("AIR", 5.0, {"speech": 6.128}))])
    assert [one.table.title for one in found] == [
        "Language",
        "Language, as the successor reports it",
        "AIR-Bench, chat",
    ]
    assert [None if own is None else own[0] for own in found[0].own] == [61.25, None, None, None]
    assert [None if own is None else own[0] for own in found[2].own] == [6.128, None, None, None]
    air = found[2].table
    assert (air.shown(6.128, 0), air.shown(7.4, 0), air.shown(None, 0)) == ("6.13", "7.40", ABSENT)
    assert beside([Evaluated("of_somebody_else", score())]) == []


def test_markdown_has_the_scores_and_the_tables_with_a_row_of_the_run():
    notes = ["limited to 1,234 of 14,042 questions"]
    text = markdown_of("my|run", [Evaluated("mmlu", score(parts={"law": 50.04}, notes=notes))])
    lines = text.splitlines()
    assert lines[0] == "# my\\|run: scores"
    assert "| MMLU | 61.2 % | 58.0 to 64.5 | 1,234 | limited to 1,234 of 14,042 questions |" in lines
    assert "| Baichuan-Omni 7B | 65.3 | 72.2 | 47.7 | 68.9 |" in lines
    assert "| **this run** | **61.2** | - | - | - |" in lines
    assert "| law | 50.0 |" in lines
    assert {line.count("|") for line in lines if line.startswith("| ")} <= {3, 6, 7}


def examples():
    hostile = "<script>alert(1)</script>"
    turns = (Turn("user", (("text", f"which? {hostile}"),)), Turn("assistant", ()))
    question = Question("q<1>", Sample("q<1>", turns), ["red", hostile], category="<b>colour</b>")
    return [Example(question, hostile, Grade("", 0.25, (0.25, 1.0), "no & no"))]


def test_the_page_shows_figures_intervals_and_answers_and_escapes_them():
    left_out = [{"id": "<i>7", "kind": "not asked", "why": "there is no <file>"}]
    told = score(parts={"<u>law": 50.0}, notes=["1 not asked, which do not count"], left_out=left_out)
    page = page_of("<my run>", [Evaluated("mmlu", told, examples())], "torch 2")
    assert page.count('<tr class="own">') == 2 and 'href="#mmlu"' in page and '<section id="mmlu">' in page
    own = page[page.index('<tr class="own">') :]
    assert re.search(r"<b>61\.2</b></a><small>58\.0 to 64\.5; 1,234 \*</small>", own)
    for raw in ("<script>alert", "<b>colour", "<my run>", "<u>law", "<i>7", "<file>", "q<1>"):
        assert raw not in page
    for words in ("&lt;script&gt;alert(1)", "0.25", "no &amp; no", "there is no &lt;file&gt;", "nothing"):
        assert words in page
    assert "http" not in page.replace("http-equiv", "")


def graded(rights):
    return [
        (Question(str(number), Sample(str(number), ()), "", category=str(number % 2)), Grade("", right, ()))
        for number, right in enumerate(rights)
    ]


@pytest.mark.parametrize(
    ("rights", "expected"),
    [
        ([1.0] * 20, [0, 1, 2, 3, 4, 5]),
        ([1.0] * 10 + [0.0] * 10, [0, 1, 3, 10, 11, 12]),
        ([0.0] * 2 + [1.0] * 2, [0, 1, 2, 3]),
        ([0.0] * 9, [0, 1, 2, 3, 4, 5]),
        ([], []),
    ],
)
def test_answers_to_show_are_half_wrong_and_of_all_categories(rights, expected):
    assert chosen(graded(rights)) == expected
