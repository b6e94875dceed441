"""Memory is flat over a large data set: its lines, its records, its index."""

import json
import os
from pathlib import Path

import numpy as np

from omnikit.data import layouter_of
from omnikit.indexing import index_of

RECORDS = 100_000
MOST = 1.0
"""MB that 10,000 records may leave behind: 100 bytes each."""


def resident():
    """MB that this process holds, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def slope(held):
    """MB per 10,000 records, of a line through all but the first fifth, in which caches fill."""
    counts, amounts = np.array(held[len(held) // 5 :]).T
    return 1e4 * np.polyfit(counts, amounts, 1)[0]


def test_a_pass_over_many_records_and_their_index_leaves_nothing_behind(recipe_of, parts, tmp_path, monkeypatch):
    monkeypatch.setenv("OMNIKIT_CACHE", str(tmp_path / "cache"))
    with (tmp_path / "many.jsonl").open("w") as file:
        for number in range(RECORDS):
            turns = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "red"}]
            file.write(json.dumps({"id": f"many/{number}", "turns": turns}) + "\n")
    source = {"type": "jsonl", "path": str(tmp_path / "many.jsonl")}
    recipe = recipe_of({"one": parts.stage({"many": 1}, {"rest": 1e-3})}, data={"many": source})
    opened, layouter, held = recipe.data["many"].open(), layouter_of(recipe), []

    index = index_of(recipe, "one", "many", opened, layouter, lambda _, done, total: held.append((done, resident())))
    assert len(held) == -(-RECORDS // 1024) and held[-1][0] == RECORDS == np.count_nonzero(index.lengths)
    assert slope(held) < MOST, "while it is indexed"

    held = []
    for number, sample in enumerate(opened):
        assert sample.id == f"many/{number}"
        if number % 1024 == 0:
            held.append((number, resident()))
    assert number == RECORDS - 1
    assert slope(held) < MOST, "while it is read"
