"""Measures a run and writes both files of its report: what they hold, and which answers the page shows."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnikit.checkpoint import RunFolder, write_atomically
from omnikit.generate import Run
from omnikit.heldout import Table, measure
from omnikit.recipe import Recipe
from omnikit.registry import Registry
from omnikit.report.cards import Card
from omnikit.report.charts import curves, smooth
from omnikit.report.page import page_of
from omnikit.versions import environment, versions

CARDS = 12
REFERENCES = "references.json"
"""A file that whoever measured other systems on the run's held-out sets may put into its folder:
{set: {name of the system: score}}."""


def report(folder: Path, note: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """What report.json holds: the run's stages and its held-out tables. Measures the run and writes both files."""
    run = Run.load(folder, Registry.load())
    tables = measure(run, lambda name, count: note(f"held-out {name}: {count} samples"))
    references = folder / REFERENCES
    beside = json.loads(references.read_text(encoding="utf-8")) if references.is_file() else {}
    for name, table in tables.items():
        table["references"] |= beside.get(name, {})
    records = list(RunFolder(folder).metrics())
    # Where the locale is no UTF-8, Python's names of files are not all text.
    name = os.fsencode(folder.resolve().name).decode(errors="replace")
    result = summary(name, run.recipe, records, tables)
    opened = {name: entry.data.open() for name, entry in run.recipe.heldout.items()}
    cards = [Card(name, opened[name][index], tables[name]["answers"][index]) for name, index in chosen(tables)]
    lines = {stage: curves(_of(stage, records)) for stage in run.recipe.stages}
    write_atomically(folder / "report.json", json.dumps(result, indent=1) + "\n")
    page = page_of(result, lines, cards).encode(errors="replace").decode()
    write_atomically(folder / "report.html", page)
    return result


def summary(
    name: str, recipe: Recipe, records: Sequence[Mapping[str, Any]], tables: Mapping[str, Table]
) -> dict[str, Any]:
    """The report as data. `records` are the lines of metrics.jsonl; a stage's losses are means over its last steps."""
    stages = {}
    for stage, entry in recipe.stages.items():
        rows = _of(stage, records)
        made = [row["loss"] for row in rows if row["loss"] is not None]  # None: of a step that was skipped
        stages[stage] = {
            "steps": rows[-1]["step"] if rows else 0,
            "planned": entry.steps or (rows[-1]["step"] if rows else 0),
            "seconds": round(sum(row["seconds"] + row.get("wait", 0.0) for row in rows), 3),
            "tokens": sum(row["tokens"] for row in rows),
            "loss": smooth(made)[-1] if made else None,
            "losses": {group: losses[-1] for group, (_, losses) in curves(rows).items()},
            "train": entry.model_dump(mode="json")["train"],
        }
    packages = versions()
    return {
        "recipe": name,
        "minutes": round(sum(stage["seconds"] for stage in stages.values()) / 60, 3),
        "stages": stages,
        "heldout": dict(tables),
        "versions": packages,
        "machine": {key: value for key, value in environment().items() if key not in packages},
    }


def chosen(tables: Mapping[str, Table], number: int = CARDS) -> list[tuple[str, int]]:
    """(set, index) of the answers to show: spread over sets and kinds, a third of them wrong as far as there are any.

    Nothing is drawn at random: equal tables give the same choice.
    """
    order = {name: place for place, name in enumerate(tables)}
    rows = [(name, i, row) for name, one in tables.items() for i, row in enumerate(one["answers"])]
    picked: dict[tuple[str, int], None] = {}
    shown: Counter[tuple[str, ...]] = Counter()

    def take(pool: Iterable[tuple[str, int, Mapping[str, Any]]], until: int) -> None:
        left = [(name, i, str(row["kind"])) for name, i, row in pool if (name, i) not in picked]
        while left and len(picked) < until:
            # The least shown set, in it the least shown kind, of that the first.
            best = min(left, key=lambda one: (shown["set", one[0]], shown["kind", one[2]], order[one[0]], one[1]))
            left.remove(best)
            picked[best[0], best[1]] = None
            shown["set", best[0]] += 1
            shown["kind", best[2]] += 1

    take((row for row in rows if not row[2]["right"]), number // 3)
    take((row for row in rows if row[2]["right"]), number)
    take(rows, number)
    return sorted(picked, key=lambda one: (order[one[0]], one[1]))


def _of(stage: str, records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in records if record["stage"] == stage]
