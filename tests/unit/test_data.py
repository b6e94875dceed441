"""Position is arithmetic: plans, mixtures and resuming; and what is wrong with a data set, told by file and line."""

# ruff: noqa: E501  (records and faults stand on one line each)

import itertools
import json
import math
import re
import shutil
import time
from collections import Counter

import pytest
import torch
from PIL import Image

from omnikit.builtin.sources import Jsonl
from omnikit.component import Medium, Sample, Turn
from omnikit.data import Position, StageData, layouter_of
from omnikit.mixing import WINDOW, _by_shares

DATA = {"text": 1, "image": 2, "video": 1, "audio": 1, "mixed": 1}


@pytest.fixture(scope="module")
def recipe(recipe_of, parts):
    batch = {"length": 64, "packs": 4, "micro": 2}
    stages = {
        "one": parts.stage(DATA, {"rest": 1e-3}, batch=batch),
        "two": parts.stage(DATA, {"rest": 1e-3}, batch=batch),
    }
    return recipe_of(stages)


@pytest.fixture
def data_of(small_windows):
    return lambda recipe, name="one": StageData(recipe, name, layouter_of(recipe))


def ids_of(data, packs):
    return [[data.sources[entry.source][entry.number].id for entry in pack] for pack in packs]


# ---------------------------------------------------------------------------------------------------------------- plans


def test_a_plan_is_a_function_of_seed_stage_and_window(recipe, recipe_of, data_of):
    first, second = data_of(recipe), data_of(recipe)
    plans = [first.plan(window) for window in range(4)]
    assert [second.plan(window) for window in (3, 1, 0, 2)] == [plans[3], plans[1], plans[0], plans[2]]
    assert len(set(map(str, plans))) == 4, "no two windows are alike"
    assert data_of(recipe, "two").plan(0) != plans[0]
    other = recipe.model_copy(update={"run": recipe.run.model_copy(update={"seed": 1})})
    assert data_of(other).plan(0) != plans[0]


def test_a_window_holds_its_samples_once_in_packs_that_are_not_sorted_by_length(recipe, data_of):
    data = data_of(recipe)
    for window in range(3):
        packs = data.plan(window)
        positions = range(window * 16, (window + 1) * 16)
        assert Counter((one.source, one.number) for pack in packs for one in pack) == Counter(
            map(data.mixture.at, positions)
        )
        assert all(sum(entry.length for entry in pack) <= 64 for pack in packs)
        assert all(len(data.layout(entry).ids) == entry.length for pack in packs for entry in pack)
    longest = [[max(entry.length for entry in pack) for pack in data.plan(window)] for window in range(6)]
    assert any(lengths != sorted(lengths, reverse=True) for lengths in longest)


def test_packs_are_the_windows_one_after_another(recipe, data_of):
    data = data_of(recipe)
    windows = [data.plan(window) for window in range(3)]
    expected = [(pack, (w, n)) for w, packs in enumerate(windows) for n, pack in enumerate(packs)]
    found = list(itertools.islice(data.packs(Position()), len(expected)))
    assert [pack for pack, _ in found] == [pack for pack, _ in expected]
    starts = [at for _, at in expected] + [(3, 0)]
    assert [tuple(after) for _, after in found] == starts[1:]


def same(first, second):
    """Whether two steps are the same to the last bit."""
    return (
        first.samples == second.samples
        and first.after == second.after
        and all(
            torch.equal(a.ids, b.ids)
            and torch.equal(a.segments, b.segments)
            and torch.equal(a.label_at, b.label_at)
            and torch.equal(a.labels, b.labels)
            and torch.equal(a.groups, b.groups)
            and a.group_names == b.group_names
            and a.media.keys() == b.media.keys()
            and all(
                torch.equal(a.media[name].places, b.media[name].places)
                and a.media[name].owners == b.media[name].owners
                and all(
                    torch.equal(x.value, y.value) for x, y in zip(a.media[name].items, b.media[name].items, strict=True)
                )
                for name in a.media
            )
            for a, b in zip(first.batches, second.batches, strict=True)
        )
    )


def take(steps, number):
    found = list(itertools.islice(steps, number))
    steps.close()
    return found


def test_a_step_is_the_same_from_wherever_one_resumes(recipe, data_of):
    whole = take(data_of(recipe).steps(Position()), 9)
    assert whole[-1].after.window >= 2 and any(step.after.offset for step in whole), "it goes over windows' edges"
    assert all(len(step.batches) == 2 and step.batches[0].ids.shape == (2, 64) for step in whole)
    for number, step in enumerate(whole[:-1]):
        [resumed] = take(data_of(recipe).steps(step.after), 1)
        assert same(resumed, whole[number + 1]), f"step {number + 2}, resumed at {step.after}"
    assert not same(whole[0], whole[1])


def test_closing_the_steps_ends_their_threads(recipe, data_of):
    import threading
    import time

    before = threading.active_count()
    take(data_of(recipe).steps(Position()), 2)
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before  # fewer: of the test before, some were yet ending


# ------------------------------------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize("shares", [{"a": 1, "b": 1}, {"a": 3, "b": 1, "c": 0.5}, {"a": 1, "b": 99}])
def test_shares_are_met_at_every_point(shares):
    mixture = _by_shares(dict.fromkeys(shares, 40), shares, seed=0)
    counts = Counter()
    for position in range(600):
        counts[mixture(position)[0]] += 1
        for name, share in shares.items():
            assert abs(counts[name] - (position + 1) * share / sum(shares.values())) <= len(shares)


def test_each_source_is_seen_whole_every_epoch_in_another_order():
    mixture = _by_shares({"a": 40, "b": 30}, {"a": 1, "b": 3}, seed=7)
    seen = {"a": [], "b": []}
    for position in range(600):
        key, index = mixture(position)
        seen[key].append(index)
    for key, size in (("a", 40), ("b", 30)):
        epochs = [seen[key][begin : begin + size] for begin in range(0, len(seen[key]) - size + 1, size)]
        assert len(epochs) >= 3 and all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len(set(map(tuple, epochs))) == len(epochs), "no two epochs are alike"
        assert all(epoch != list(range(size)) for epoch in epochs)


def test_a_single_source_and_a_single_sample_go_on_for_ever():
    mixture = _by_shares({"a": 1}, {"a": 0.2}, seed=0)
    assert [mixture(position) for position in (0, 1, 10**6)] == [("a", 0)] * 3


@pytest.mark.parametrize("size", [1, 2, 3, 8, 511, 512, 513])
def test_a_source_of_any_size_is_reshuffled_every_epoch_and_soon(size):
    """grain alone needs 0.1 s for each place in a shuffle of two samples."""
    epochs = min(60, 6000 // size)
    began = time.process_time()
    mixture = _by_shares({"a": size}, {"a": 1}, seed=3)
    orders = [tuple(mixture(epoch * size + place)[1] for place in range(size)) for epoch in range(epochs)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert len(set(orders)) == min(math.factorial(min(size, 8)), epochs), "no two are alike, as far as there are orders"
    again = _by_shares({"a": size}, {"a": 1}, seed=3)
    assert [again(place * size)[1] for place in reversed(range(epochs))] == [order[0] for order in reversed(orders)]
    other = _by_shares({"a": size}, {"a": 1}, seed=4)
    assert size < 8 or [other(place)[1] for place in range(size)] != list(orders[0])
    assert time.process_time() - began < 3


def test_windows_are_of_a_size_that_planning_can_bear():
    assert WINDOW == 512


# --------------------------------------------------------------------------------------------------- samples that fail


def test_a_sample_longer_than_a_pack_is_dropped_and_told(recipe_of, parts, data_of):
    short = parts.stage({"video": 1}, {"rest": 1e-3}, batch={"length": 12, "packs": 1})
    message = (
        r"^data\.video: none of its \d+ records can be used; the first: sample v\d+: has \d+ tokens with its media at "
        r"their smallest, more than a pack of 12; raise the stage's batch\.length"
    )
    with pytest.raises(ValueError, match=message):
        data_of(recipe_of({"one": short}))


@pytest.fixture
def rows(tmp_path, world, recipe_of, parts):
    """rows(records, stage) -> a recipe of one image data set that holds just these records (or raw lines)."""

    def make(records, **settings):
        for number in range(8):
            shutil.copy(world / f"{number}.png", tmp_path)
        lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
        (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        data = {"rows": {"type": "jsonl", "path": str(tmp_path / "rows.jsonl"), "modalities": ["image"]}}
        return recipe_of({"one": parts.stage({"rows": 1}, {"rest": 1e-3}, **settings)}, data=data)

    return make


def record(image="0.png", answer="red", name="s1", **more):
    content = [{"image": image}, {"text": "colour?"}]
    return {
        "id": name,
        "turns": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        **more,
    }


def turned(*turns):
    return {"id": "s1", "turns": [{"role": role, "content": content} for role, content in turns]}


# fmt: off
FAULTS = {
    "missing medium": (record("gone.png"), r"^sample s1: image: .*gone\.png: cannot be opened"),
    "medium is a folder": (record("."), r"^sample s1: image: .*: is no regular file"),
    "empty medium": (record("empty.png"), r"^sample s1: image: .*empty\.png: is empty"),
    "broken medium": (record("text.png"), r"^sample s1: image: .*text\.png: is no picture that can be read"),
    "name with a NUL": (record("a\0b.png"), r"^sample s1: image: .*cannot be opened"),
    "unknown modality": (turned(("user", [{"depth": "0.png"}]), ("assistant", "a")), r"rows\.jsonl:1: turn 1: modality 'depth' is not one of"),
    "empty answer": (record(answer="  \n"), r"rows\.jsonl:1: turn 2: the assistant's answer is empty"),
    "answer without text": (record(answer=[{"image": "0.png"}]), r"rows\.jsonl:1: turn 2: the assistant's answer is empty"),
    "no JSON": (b'{"id": "s1", "turns": [', r"rows\.jsonl:1: is no JSON \("),
    "no UTF-8": (b'{"id": "\xff"}', r"rows\.jsonl:1: is no JSON \("),
    "a number of 5000 digits": (b'{"turns": ' + b"1" * 5000 + b"}", r"rows\.jsonl:1: is no JSON \("),
    "100000 brackets": (b"[" * 100_000, r"rows\.jsonl:1: is no JSON \("),
    "a list": (b"[]", r'rows\.jsonl:1: has no list "turns"'),
    "no turns": ({"id": "s1"}, r'rows\.jsonl:1: has no list "turns"'),
    "turns are a mapping": ({"turns": {}}, r'rows\.jsonl:1: has no list "turns"'),
    "empty turns": ({"turns": []}, r"rows\.jsonl:1: has no assistant turn"),
    "no assistant": (turned(("user", "a")), r"rows\.jsonl:1: has no assistant turn; there is nothing to learn"),
    "unknown role": (turned(("robot", "a"), ("assistant", "b")), r"rows\.jsonl:1: turn 1: is no turn; .*system, user, assistant"),
    "role is a list": (turned((["user"], "a"), ("assistant", "b")), r"rows\.jsonl:1: turn 1: is no turn"),
    "unknown key": (record(speaker="x"), r"rows\.jsonl:1: unknown key 'speaker'"),
    "unknown key in a turn": ({"turns": [{"role": "user", "content": "a", "name": "b"}]}, r"rows\.jsonl:1: turn 1: is no turn"),
    "turn is a text": ({"turns": ["hello"]}, r"rows\.jsonl:1: turn 1: is no turn"),
    "content is a number": (turned(("user", 7), ("assistant", "b")), r"rows\.jsonl:1: turn 1: content is neither a text nor a list"),
    "part with two keys": (turned(("user", [{"text": "a", "image": "0.png"}]), ("assistant", "b")), r"turn 1: a part has exactly one key"),
    "part without key": (turned(("user", [{}]), ("assistant", "b")), r"rows\.jsonl:1: turn 1: a part has exactly one key"),
    "text is a number": (turned(("user", [{"text": 7}]), ("assistant", "b")), r"rows\.jsonl:1: turn 1: text is int; write a string"),
    "half a character": (turned(("user", "\ud83d"), ("assistant", "b")), r"rows\.jsonl:1: turn 1: text .*half a character"),
    "half a character in an answer": (turned(("user", "a"), ("assistant", "b\udc00")), r"rows\.jsonl:1: turn 2: text .*half a character"),
    "medium is a number": (record(7), r"rows\.jsonl:1: turn 1: image: write a path"),
    "medium without path": (record({"start": 1}), r"rows\.jsonl:1: turn 1: image: write a path"),
    "medium with an unknown key": (record({"path": "0.png", "fps": 1}), r"rows\.jsonl:1: turn 1: image: write a path"),
    "negative start": (record({"path": "0.png", "start": -1}), r"rows\.jsonl:1: turn 1: image: start and end are seconds"),
    "start is true": (record({"path": "0.png", "start": True}), r"rows\.jsonl:1: turn 1: image: start and end are seconds"),
    "start is NaN": (b'{"turns": [{"role": "user", "content": [{"image": {"path": "0.png", "start": NaN}}]}]}', r"rows\.jsonl:1: is no JSON \(NaN is no number\)"),
    "ends before it starts": (record({"path": "0.png", "start": 2, "end": 2}), r"rows\.jsonl:1: turn 1: image: ends at 2 s, before it starts"),
}
# fmt: on


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_record_is_one_line_that_says_where(rows, tmp_path, data_of, fault):
    bad, message = FAULTS[fault]
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("a picture of a circle")
    recipe = rows([bad])
    with pytest.raises(ValueError, match=r"^data\.rows: none of its 1 records can be used; the first: ") as caught:
        data_of(recipe)
    text = str(caught.value).partition("the first: ")[2]
    assert re.search(message, text), text
    assert "\n" not in text and len(text) < 600
    assert "rows.jsonl:1" in text or "s1" in text


def test_a_role_without_a_prefix_is_the_recipes_fault_not_a_bad_sample(rows, data_of):
    recipe = rows(
        [record(name=f"s{number}") for number in range(30)]
        + [turned(("system", "S"), ("user", "a"), ("assistant", "b"))]
    )
    with pytest.raises(ValueError, match=r"^sample s1: chat has no prefix for role 'system'; add it to backbone\.chat"):
        data_of(recipe)


def test_the_line_is_counted_as_an_editor_counts(rows, data_of):
    good = json.dumps(record()).encode()
    recipe = rows([good, b"", b"   ", good, b"{"])
    with pytest.raises(ValueError, match=r"rows\.jsonl:5: is no JSON"):
        list(recipe.data["rows"].open())
    assert len(recipe.data["rows"].open()) == 3


def test_an_empty_file_and_a_missing_one_are_told(rows, tmp_path, data_of):
    recipe = rows([b"", b"  "])
    with pytest.raises(ValueError, match=r"rows\.jsonl: holds no record; write one JSON object a line"):
        data_of(recipe)
    assert recipe.data["rows"].missing() is None
    (tmp_path / "rows.jsonl").unlink()
    assert recipe.data["rows"].missing() == str(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match=r"rows\.jsonl: cannot be read \(No such file"):
        data_of(recipe)


def test_of_a_medium_that_breaks_off_only_the_places_are_left(rows, tmp_path, data_of):
    """Its header is sound, so the plan is too: only decoding finds out. Nothing else moves."""
    Image.effect_noise((64, 64), 99).convert("RGB").save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    records = [record(f"{number % 8}.png", name=f"s{number}") for number in range(15)] + [
        record("cut.png", name="broken")
    ]
    recipe = rows(records, batch={"length": 48, "packs": 2, "micro": 2})
    good = take(data_of(recipe).steps(Position()), 4)
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    digests = {"rows": data_of(recipe).indexes["rows"].digest}
    found = take(StageData(recipe, "one", layouter_of(recipe), digests=digests).steps(Position()), 4)
    told = [one for step in found for one in step.samples if one.bad]
    assert {one.id for one in told} == {"broken"}
    assert re.fullmatch(r"sample broken: image: .*cut\.png: is a broken picture \(.*\); replace the file", told[0].bad)
    padded = 0
    for before, after in zip(good, found, strict=True):
        assert [one.id for one in before.samples] == [one.id for one in after.samples]
        assert before.after == after.after
        [a], [b] = before.batches, after.batches
        gone = (a.segments > 0) & (b.segments == 0)
        padded += int(gone.sum())
        assert torch.equal(a.segments[~gone], b.segments[~gone]) and torch.equal(a.ids[~gone], b.ids[~gone])
        assert not b.ids[gone].any()
        kept = [number for number, at in enumerate(a.label_at.tolist()) if not gone.flatten()[at]]
        assert b.label_at.tolist() == a.label_at[kept].tolist() and b.labels.tolist() == a.labels[kept].tolist()
        names = {one.id for one in before.samples} - {"broken"}
        assert [o for o in b.media["image"].owners] == [o for o in a.media["image"].owners if o[0] in names]
    assert padded == len(told) * next(
        entry.length for pack in data_of(recipe).plan(0) for entry in pack if entry.number == 15
    )


# ---------------------------------------------------------------------------------------------------------------- jsonl


def test_records_are_read_as_written(tmp_path):
    lines = [
        {
            "id": 7,
            "kind": "colour",
            "turns": [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "c"}],
        },
        {
            "turns": [
                {"role": "user", "content": [{"image": {"path": "x/y.png", "start": 1, "end": 2.5}}, {"text": "t"}]},
                {"role": "assistant", "content": [{"text": "a"}]},
            ]
        },
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode())
    first, second = Jsonl(path=str(path), modalities=("image",)).open()
    assert first == Sample("7", (Turn("user", (("text", "a\u2028b"),)), Turn("assistant", (("text", "c"),))), "colour")
    assert second.id == f"{path}:2" and second.kind == ""
    assert second.turns[0].content == (("image", Medium(str(tmp_path / "x/y.png"), 1, 2.5)), ("text", "t"))


def test_an_id_of_zero_is_an_id(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"id": 0, "turns": [{"role": "assistant", "content": "c"}]}))
    assert Jsonl(path=str(path)).open()[0].id == "0"


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    for name, text in (("a", "1\n"), ("b", "1\n"), ("c", "2\n")):
        (tmp_path / name).write_text(text)
    a, b, c = (Jsonl(path=str(tmp_path / name)).fingerprint() for name in "abc")
    assert a == b != c
