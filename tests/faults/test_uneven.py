"""Test 14: data that ends, and does not divide by the ranks: all end at the same step, no sample twice, none lost."""

import json
from collections import Counter

import pytest
from harness import metrics_of


def rows(path, number):
    with path.open("w") as file:
        for which in range(number):
            turns = [
                {"role": "user", "content": [{"text": "red " * (which % 7 + 1)}]},
                {"role": "assistant", "content": "blue"},
            ]
            file.write(json.dumps({"id": f"s{which}", "turns": turns}) + "\n")


@pytest.mark.parametrize(
    ("samples", "size", "packs", "micro", "epochs"),
    [(101, 4, 4, 1, 1), (101, 4, 6, 2, 2), (101, 2, 3, 1, 1), (3, 4, 4, 1, 1), (1, 2, 2, 1, 3)],
)
def test_an_epoch_over_uneven_ranks_sees_every_sample_once(
    ranks, toy, parts, tmp_path, samples, size, packs, micro, epochs
):
    rows(tmp_path / "data.jsonl", samples)
    data = {"rows": {"type": "jsonl", "path": str(tmp_path / "data.jsonl"), "modalities": []}}
    batch = {"length": 24, "packs": packs, "micro": micro}
    stage = parts.stage({"rows": 1}, {"rest": 1e-3}, steps=None, epochs=epochs, batch=batch)
    recipe = toy(f"uneven-{samples}-{size}-{packs}", {"only": stage}, data=data, encoders={}, modalities={})
    (tmp_path / "traces").mkdir()
    folder = tmp_path / "run"
    ranks.run("train", recipe, "--out", folder, ranks=size, faults=[("trace", {"folder": str(tmp_path / "traces")})])
    lines = [
        [json.loads(line) for line in (tmp_path / "traces" / f"trace-{rank}.jsonl").read_text().splitlines()]
        for rank in range(size)
    ]
    seen = Counter(name for found in lines for line in found if line["what"] == "read" for name in line["ids"])
    assert seen == {f"s{which}": epochs for which in range(samples)}
    steps = {len([line for line in found if line["what"] == "stepped"]) for found in lines}
    assert steps == {len(metrics_of(folder))}, "all ranks make the same steps"
    ranks.run("train", recipe, "--out", tmp_path / "one", ranks=1)
    alone, together = metrics_of(tmp_path / "one"), metrics_of(folder)
    assert [line["labels"] for line in together] == [line["labels"] for line in alone]
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=1e-4)
    print(
        f"injected: {samples} samples, {epochs} epochs, {packs} packs a step on {size} ranks: {len(alone)} steps each"
    )
