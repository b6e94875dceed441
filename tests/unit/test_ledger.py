"""Bad samples: counted and listed, and too many of them stop the run."""

import contextlib
import itertools
import json
import os
from collections import Counter

import pytest
import torch
from PIL import Image

from omnikit.checkpoint import BAD
from omnikit.data import Seen
from omnikit.ledger import IN_A_ROW, OFTEN, SKIPPED, Ledger, Skips
from omnikit.train import TrainingStopped, train


def seen(pattern, source="a"):
    return [Seen(source, f"s{n}", "it is broken" if letter == "x" else "") for n, letter in enumerate(pattern)]


@pytest.mark.parametrize(
    ("pattern", "allowed", "stops"),
    [
        ("x" * 20, 0.2, None),
        ("x" * 21, 0.2, "21 of 21 samples are bad, more than max_bad allows (0.2)"),
        (".........x" * 100, 0.2, None),
        ("...x" * 100, 0.2, "21 of 84 samples are bad, more than max_bad allows (0.2)"),
        ("x" * (IN_A_ROW - 1) + "." + "x" * (IN_A_ROW - 1), 1.0, None),
        ("." * 5000 + "x" * IN_A_ROW, 1.0, f"{IN_A_ROW} samples in a row are bad"),
        ("x", 0.0, "1 of 1 samples are bad, more than max_bad allows (0)"),
    ],
)
def test_a_share_and_a_row_of_bad_samples_stop(pattern, allowed, stops):
    ledger, told = Ledger({"a": allowed}, {}), None
    for begin in range(0, len(pattern), 7):
        told = told or ledger.add(seen(pattern[begin : begin + 7]))
    assert (told is None) == (stops is None), told
    assert stops is None or (told.startswith(f"data.a: {stops}") and told.endswith("; the last: it is broken"))


def test_sources_are_counted_each_for_itself_and_counts_go_on():
    first = Ledger({"a": 0.2, "b": 0.2}, {})
    assert first.add([*seen("x" * 15, "a"), *seen("x" * 15, "b")]) is None
    resumed = Ledger({"a": 0.2, "b": 0.2}, json.loads(json.dumps(first.counts)))
    assert resumed.counts == first.counts
    assert resumed.add(seen("x" * 5, "a")) is None
    assert resumed.add(seen("x", "a")).startswith("data.a: 21 of 21")


@pytest.mark.parametrize(
    ("skipped", "told"),
    [
        ([5, 6, 8, 9], None),
        ([5, 6, 7], (7, f"{SKIPPED} steps in a row could not be made")),
        (range(2, 2 * OFTEN + 2, 2), None),
        (range(2, 2 * OFTEN + 4, 2), (42, "21 of 42 steps could not be made")),
        (range(50, 10_000, 50), None),
        (range(45, 10_000, 45), (945, "21 of 945 steps could not be made")),
    ],
)
def test_a_row_of_steps_that_are_skipped_stops_and_so_do_many(skipped, told):
    skips, found = Skips(True), None
    for step in range(1, 10_001):
        verdict = skips.add(step in skipped, step)
        skips = Skips(True, *skips.counts)  # as a checkpoint has it
        if verdict is not None:
            found = (step, verdict)
            break
    assert found == told


ENDS = {"image": "png", "audio": "wav", "video": "mp4"}


def half(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:50] if path.suffix == ".wav" else whole[: len(whole) // 2])


@pytest.fixture
def broken(tmp_path, world, recipe_of, parts, small_windows):
    """broken(modality, which) -> a recipe of 40 records, those of which `which` says so with half a file."""

    def make(modality, which, **run):
        lines = []
        for number in range(40):
            name = f"{number}.{ENDS[modality]}"
            (tmp_path / name).write_bytes((world / f"{number % 8}.{ENDS[modality]}").read_bytes())
            if modality == "image":  # large enough that half a file has a whole header
                Image.effect_noise((64, 64), 99).convert("RGB").save(tmp_path / name)
            if which(number):
                half(tmp_path / name)
            content = [{modality: name}, {"text": "colour?"}]
            turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
            lines.append(json.dumps({"id": f"s{number}", "turns": turns}))
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        data = {"rows": {"type": "jsonl", "path": str(tmp_path / "rows.jsonl"), "modalities": [modality]}}
        stage = parts.stage({"rows": 1}, {"rest": 1e-3}, steps=16, batch={"length": 96, "packs": 2})
        return recipe_of({"one": stage}, data=data, run={"save": 4, "keep": 100, **run})

    return make


def listed(folder):
    path = folder / BAD
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("modality", ENDS)
@pytest.mark.parametrize("every", [40, 10])
def test_a_few_broken_media_are_listed_and_the_run_goes_on(broken, tmp_path, quiet, modality, every):
    recipe = broken(modality, lambda number: number % every == 7)
    train(recipe, tmp_path / "run", quiet)
    expected = {f"s{number}" for number in range(40) if number % every == 7}
    lines = listed(tmp_path / "run")
    assert quiet.notes[0] == "data.rows: omnikit turns, 40 records"
    assert {line["id"] for line in lines} == expected and {line["what"] for line in lines} == {"bad"}
    assert {line["source"] for line in lines} == {"rows"} and all(ENDS[modality] in line["reason"] for line in lines)
    at_reading = Counter(line["step"] for line in lines if line["step"])
    assert {record["step"]: record["bad"] for record in quiet.records if record["bad"]} == at_reading


@pytest.mark.parametrize("modality", ENDS)
def test_media_that_are_all_broken_stop_the_run_before_it_begins(broken, tmp_path, quiet, modality):
    with pytest.raises(ValueError, match=rf"\.{ENDS[modality]}") as caught:
        train(broken(modality, lambda number: True), tmp_path / "run", quiet)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_too_many_stop_a_run_that_has_begun_and_resuming_stops_at_the_same_step(broken, tmp_path, quiet):
    recipe = broken("image", lambda number: number % 2)
    recipe = recipe.model_copy(update={"data": {"rows": recipe.data["rows"].model_copy(update={"max_bad": 0.1})}})
    for _ in range(2):
        with pytest.raises(TrainingStopped, match=r"^data\.rows: 11 of \d+ samples are bad, .*\. All are listed in .*"):
            train(recipe, tmp_path / "run", quiet)
    lines = listed(tmp_path / "run")
    # The step at which it stopped is read again: each of its lines stands there once.
    assert len(lines) == len({(line["step"], line["id"]) for line in lines}) >= 11
    assert all(int(line["id"][1:]) % 2 for line in lines)


@pytest.mark.parametrize("modality", ENDS)
def test_resuming_among_bad_samples_is_exact(broken, tmp_path, quiet, tensors_of, modality):
    """Media that break unseen, after they were indexed, are bad when they are read."""
    recipe = broken(modality, lambda number: False)
    paths = [tmp_path / f"{number}.{ENDS[modality]}" for number in range(7, 40, 10)]
    whole_files = {path: path.read_bytes() for path in paths}

    def write(contents):
        for path, content in contents.items():
            before = path.stat()
            path.write_bytes(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    class Killed(Exception):
        pass

    class Breaking(type(quiet)):
        def __init__(self, last):
            super().__init__()
            self.last = last

        def stage(self, name, done, steps):
            write({path: bytes(len(content)) for path, content in whole_files.items()})

        def step(self, record):
            super().step(record)
            if record["step"] == self.last:
                raise Killed

    for folder, last in (("whole", 17), ("cut", 9)):
        write(whole_files)
        with contextlib.suppress(Killed):
            train(recipe, tmp_path / folder, Breaking(last))
    train(recipe, tmp_path / "cut", quiet)
    assert quiet.stages == [("one", 8, 16)], "it was cut"
    first, second = (tensors_of(tmp_path / folder / "one" / "step-000016") for folder in ("whole", "cut"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    lines = listed(tmp_path / "whole")
    assert lines == listed(tmp_path / "cut")
    assert {line["id"] for line in lines} == {f"s{path.stem}" for path in paths}
    assert any(line["step"] <= 9 for line in lines) and any(line["step"] > 9 for line in lines)
    assert not any(a == b for a, b in itertools.pairwise(lines))


def test_going_on_after_the_media_were_touched_indexes_nothing_again(broken, tmp_path, quiet):
    """As when the data has been copied to another disk: what was begun with its index goes on with it."""
    recipe = broken("image", lambda number: False)

    class Killed(Exception):
        pass

    class Dying(type(quiet)):
        def step(self, record):
            if record["step"] == 9:
                raise Killed

    indexed = []

    class Watching(type(quiet)):
        def indexing(self, source, done, records):
            indexed.append(source)

    with pytest.raises(Killed):
        train(recipe, tmp_path / "run", Dying())
    for path in tmp_path.glob("*.png"):
        os.utime(path, ns=(1, 1))
    train(recipe, tmp_path / "run", Watching())
    assert indexed == []
    train(recipe, tmp_path / "another", Watching())
    assert indexed, "who begins looks at the media"
