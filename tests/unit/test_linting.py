"""`omnikit data lint`: every planted fault is found, by kind, record and id; clean data has none."""

import itertools
import json
import random
import shutil
import tracemalloc
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from omnikit.balancing import costing, dealt, idle_share, in_order
from omnikit.builtin.sources import Jsonl
from omnikit.cli import main
from omnikit.component import Medium, Sample, SourceConfig, Turn
from omnikit.data import StageData, layouter_of
from omnikit.linting import KINDS, lint
from omnikit.linting.records import key_of
from omnikit.linting.stages import Sizes, evenly
from omnikit.recipe import dump_recipe


class Rows(list):
    """Samples; an exception among them, or a text as a ValueError, is raised when it is asked for."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        if isinstance(row, str):
            raise ValueError(row)
        if isinstance(row, Exception):
            raise row
        return row


class Planted(SourceConfig):
    """A source of just these rows, which checks none of them."""

    type: ClassVar[str] = "planted"
    rows: Any = ()
    gone: str | None = None

    def missing(self):
        return self.gone

    def open(self):
        if isinstance(self.rows, Exception):
            raise self.rows
        return Rows(self.rows)


SHARES = {"short": 1 / 3, "long": 2 / 3}


def talk(name, *turns):
    """A sample of turns (role, part, ...); a part is a text or a pair."""
    parts = [Turn(role, tuple(p if isinstance(p, tuple) else ("text", p) for p in content)) for role, *content in turns]
    return Sample(name, tuple(parts))


def asked(name, *question, answer="red"):
    return talk(name, ("user", *question), ("assistant", answer))


@pytest.fixture(scope="module")
def recipe_with(recipe_of, parts):
    """recipe_with({name: source}, {name: held-out source}) -> a recipe of one stage that mixes them 1 : 2 : ..."""

    def make(data, heldout=None, *, length=48, cut=False, shares=(1, 2, 3), **settings):
        chat = {**parts.backbone["chat"], "prefix": {**parts.backbone["chat"]["prefix"], "system": "<|system|>"}}
        shares = dict(zip(data, shares, strict=False))
        batch = {"length": length, "packs": 2, "micro": 1, "cut": cut}
        stages = {"one": parts.stage(shares, {"rest": 1e-3}, batch=batch, **settings)}
        held = {name: {"data": source, "metric": "exact"} for name, source in (heldout or {}).items()}
        backbone = {**parts.backbone, "chat": chat}
        return recipe_of(stages, data=data, heldout=held, backbone=backbone)

    return make


@pytest.fixture
def specimen(registry, tmp_path):
    """The specimen of the source `jsonl`: six records, two with a picture and two with sound."""
    return registry.get("source", "jsonl").specimen(tmp_path)


@pytest.fixture
def picture(tmp_path):
    """picture("a.png", (r, g, b)) -> a Medium."""

    def make(name, rgb=(9, 99, 199)):
        Image.new("RGB", (16, 16), rgb).save(tmp_path / name)
        return Medium(str(tmp_path / name))

    return make


def places(result):
    """{kind: [(source, record, sample), ...]} of all findings."""
    found = {}
    for finding in result["findings"]:
        place = (finding["source"], finding["record"], finding["sample"])
        found.setdefault(finding["kind"], []).append(place)
    return found


# --------------------------------------------------------------------------------------------------------------- faults


def test_clean_data_has_no_finding(recipe_with, specimen):
    recipe = recipe_with({"good": specimen}, length=200)
    for decode in (False, True):
        result = lint(recipe, decode=decode)
        assert (result["findings"], result["errors"], result["warnings"]) == ([], 0, 0)
        row = result["sources"]["data.good"]
        assert (row["records"], row["looked_at"], row["usable"], row["findings"]) == (6, 6, 6, {})
        assert row["turns"] == {"system": 3, "user": 6, "assistant": 6}
        assert row["media"] == {"audio": {"count": 2, "broken": 0}, "image": {"count": 2, "broken": 0}}


def test_every_kind_of_fault_is_found_where_it_was_planted(recipe_with, picture, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good, broken, gone = picture("good.png"), Medium(str(tmp_path / "broken.png")), Medium(str(tmp_path / "gone.png"))
    rows = [
        asked("fine", ("image", good), "colour?"),
        ValueError("file:2: is no JSON; write one JSON object a line"),
        KeyError("turns"),
        asked("two-broken", ("image", broken), ("image", good), ("image", gone)),
        asked("twin", "one?"),
        asked("other twin", "one?"),
        asked("fine", "same id?"),
        asked("empty", "why?", answer="  "),
        talk("deaf", ("user", "hello"), ("system", "Be brief."), ("assistant", "hello")),
        talk("eager", ("assistant", "hello")),
        talk("silent", ("user", "hello"), ("user", "hello?")),
        talk("two answers", ("user", "1"), ("assistant", "1"), ("assistant", "2")),
        asked("smell", ("smell", good)),
        asked("video", ("video", good)),
        talk("robot", ("robot", "beep"), ("assistant", "beep")),
        Sample("nothing", ()),
        asked("long", "red " * 60),
    ]
    sources = {"bad": Planted(rows=rows, modalities=("image", "audio")), "none": Planted(rows=[OSError("disk")] * 2)}
    held = [asked("exam", "new?"), asked("leaked", "one?"), asked("leaked picture", ("image", good), "colour?")]
    heldout = {
        "exam": Planted(rows=held, modalities=("image",)),
        "gone": Planted(gone="nowhere.jsonl"),
        "shut": Planted(rows=ValueError("folder: holds no record; write one")),
    }
    result = lint(recipe_with(sources, heldout))

    def bad(*found):
        return [("data.bad", record, name) for record, name in found]

    assert places(result) == {
        "no_usable_record": [("data.none", None, None), ("heldout.gone", None, None), ("heldout.shut", None, None)],
        "unparsable": [*bad((1, None), (2, None)), ("data.none", 0, None), ("data.none", 1, None)],
        "broken_medium": bad((3, "two-broken"), (3, "two-broken")),
        "unknown_modality": bad((12, "smell"), (13, "video")),
        "no_layout": bad((14, "robot"), (15, "nothing")),
        "contamination": [("heldout.exam", 1, "leaked"), ("heldout.exam", 2, "leaked picture")],
        "duplicate": bad((5, "other twin")),
        "duplicate_id": bad((6, "fine")),
        "empty_answer": bad((7, "empty")),
        "role_order": bad(
            *((8, "deaf"), (9, "eager"), (10, "silent"), (10, "silent")),
            (11, "two answers"),
        ),
        "nothing_learned": bad((10, "silent")),
        "too_long": [("data.bad", None, None)],
        "unused_modality": [("data.bad", None, None)],
    }
    assert list(places(result)) == list(KINDS), "each kind is planted here, and they come in this order"
    assert (result["errors"], result["warnings"]) == (14, 12)
    row = result["sources"]["data.bad"]
    assert (row["records"], row["looked_at"], row["usable"]) == (17, 17, 10)
    assert row["media"]["image"] == {"count": 4, "broken": 2}
    assert row["findings"]["role_order"] == 5 and sum(row["findings"].values()) == 19
    assert row["tokens"][0]["stages"] == {"one": {"length": 48, "over": 1, "shrunk": 0, "cut": 0, "dropped": 1}}
    assert "one" in result["stages_left_out"] and "data.none" in result["stages_left_out"]["one"]


def test_findings_say_where_what_is_wrong_and_what_would_be_right(recipe_with, picture, tmp_path):
    rows = [
        asked("a\nb", ("image", Medium(str(tmp_path / "gone.png")))),
        asked("c", "one?", answer=""),
        ValueError("x.jsonl:3: is no JSON; write one JSON object a line"),
    ]
    result = lint(recipe_with({"bad": Planted(rows=rows, modalities=("image",))}))
    unparsable, broken, empty = (finding["message"] for finding in result["findings"])
    assert unparsable == "data.bad: x.jsonl:3: is no JSON; write one JSON object a line"
    assert broken.startswith(f"data.bad: sample a\\nb: image: {tmp_path}/gone.png: cannot be opened") and ";" in broken
    assert empty == "data.bad: sample c: turn 2: the assistant's answer is empty; write it or remove the record"


def test_what_a_source_itself_refuses_is_told_as_what_it_is(recipe_with, tmp_path):
    """The sources of the core give no sample without an answer: training counts it as bad."""
    rows = [
        {"id": "empty", "turns": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": " "}]},
        {"id": "mute", "turns": [{"role": "user", "content": "a?"}]},
        {"id": "fine", "turns": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "red"}]},
        {"id": "odd", "turns": 7},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = lint(recipe_with({"bad": Jsonl(path=str(path))}))
    assert {kind: [record for _, record, _ in found] for kind, found in places(result).items()} == {
        "unparsable": [3],
        "empty_answer": [0, 1],
    }
    assert (result["errors"], result["warnings"]) == (3, 0)


def test_a_fault_is_told_once_whatever_the_stages_call_the_media(recipe_with, parts, tmp_path):
    rows = [asked("gone", ("image", Medium(str(tmp_path / "gone.png")))), talk("asks", ("user", "hello"))]
    recipe = recipe_with({"bad": Planted(rows=rows, modalities=("image",))})
    shares = {"bad": {"share": 1, "as": {"image": "video"}}}
    tree = recipe.model_dump(by_alias=True)["stages"]
    stages = {
        "one": recipe.stages["one"],
        "two": type(recipe.stages["one"]).model_validate({**tree["one"], "data": shares}),
    }
    result = lint(recipe.model_copy(update={"stages": stages}))
    assert places(result) == {
        "broken_medium": [("data.bad", 0, "gone")],
        "role_order": [("data.bad", 1, "asks")],
        "nothing_learned": [("data.bad", 1, "asks")],
    }
    assert [use["as"] for use in result["sources"]["data.bad"]["tokens"]] == [{}, {"image": "video"}]


def test_decoding_finds_what_headers_hide_and_copies_under_another_name(recipe_with, picture, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    first = picture("first.png")
    shutil.copy(first.source, tmp_path / "copy.png")
    rows = [
        asked("cut", ("image", Medium(str(tmp_path / "cut.png")))),
        asked("first", ("image", first)),
        asked("copy", ("image", Medium(str(tmp_path / "copy.png")))),
        asked("another", ("image", picture("another.png", (200, 0, 0)))),
    ]
    held = Planted(rows=[asked("exam", ("image", Medium((tmp_path / "copy.png").read_bytes())))], modalities=("image",))
    recipe = recipe_with({"bad": Planted(rows=rows, modalities=("image",))}, {"held": held})
    assert places(lint(recipe)) == {}
    result = lint(recipe, decode=True)
    assert places(result) == {
        "broken_medium": [("data.bad", 0, "cut")],
        "contamination": [("heldout.held", 0, "exam")],
        "duplicate": [("data.bad", 2, "copy")],
    }
    assert result["media"] == "decoded" and result["sources"]["data.bad"]["usable"] == 3


def test_media_are_the_same_by_path_or_bytes_and_part():
    same = [Medium("/a/b.wav"), Medium("/a/x/../b.wav"), Medium("/a//b.wav")]
    assert len({key_of(medium) for medium in same}) == 1
    others = [same[0], Medium("/a/c.wav"), Medium(b"/a/b.wav"), Medium("/a/b.wav", 1.0), Medium("/a/b.wav", None, 1.0)]
    assert len({key_of(medium) for medium in others}) == len(others)


def test_samples_are_duplicates_by_all_their_turns_say(recipe_with, picture):
    one, two = picture("one.png"), picture("two.png")
    rows = [
        asked("0", ("image", one), "red?"),
        asked("1", "red?", ("image", one)),
        asked("2", ("image", two), "red?"),
        asked("3", ("image", one), "red?", answer="blue"),
        asked("4", ("image", one), "re", "d?"),
        asked("5", ("image", one), "red?"),
        asked("6", ("image", one), "red?"),
        asked("7", "a", "b"),
        asked("8", "atextb"),
    ]
    result = lint(recipe_with({"bad": Planted(rows=rows, modalities=("image",))}))
    assert places(result) == {"duplicate": [("data.bad", 5, "5"), ("data.bad", 6, "6")]}
    assert all("sample 0;" in finding["message"] for finding in result["findings"])


def test_workers_find_the_same_as_one_process(recipe_with, specimen, tmp_path):
    recipe = recipe_with({"good": specimen}, length=200)
    (tmp_path / "square.png").write_bytes(b"no picture")
    apart = recipe.model_copy(update={"run": recipe.run.model_copy(update={"workers": 2})})
    expected = lint(recipe, decode=True)
    assert expected["errors"] == 2
    assert lint(apart, decode=True) == expected


# -------------------------------------------------------------------------------------------------------------- numbers


def test_records_under_a_limit_are_evenly_spaced(recipe_with):
    rows = [asked(str(number), f"{number}?", answer="" if number % 4 == 0 else "red") for number in range(20)]
    recipe = recipe_with({"many": Planted(rows=rows)})
    result = lint(recipe, limit=5)
    assert [record for _, record, _ in places(result)["empty_answer"]] == [0, 4, 8, 12, 16]
    row = result["sources"]["data.many"]
    assert (result["limit"], row["records"], row["looked_at"], row["usable"]) == (5, 20, 5, 5)
    assert lint(recipe, limit=99)["sources"]["data.many"]["looked_at"] == 20


def test_what_is_looked_at_stands_for_its_neighbours():
    for total, limit in itertools.product((1, 2, 7, 100, 4096), (1, 2, 3, 7, 64, 4095, 5000)):
        indices = evenly(total, limit)
        assert len(set(indices)) == len(indices) == min(total, limit) and indices[0] == 0
        sizes = Sizes([index + 1 for index in indices], [2.0 * index for index in indices], total)
        assert sizes.samples == total
        found = [sizes.at(place) for place in range(total)]
        assert all(abs(tokens - 1 - place) <= total / len(indices) + 1 for place, (tokens, _) in enumerate(found))
        assert all(cost == 2.0 * (tokens - 1) for tokens, cost in found)
        assert limit < total or [tokens for tokens, _ in found] == list(range(1, total + 1))
    gaps = Sizes([0, 5, 0, 7], [0.0, 1.0, 0.0, 0.0], 400)
    assert gaps.samples == 200 and {gaps.at(place) for place in range(200)} == {(5, 1.0), (7, 0.0)}


def test_tokens_are_those_of_the_layout(recipe_with):
    rows = [asked(str(number), "red " * number) for number in range(1, 41)]
    recipe = recipe_with({"many": Planted(rows=rows)}, length=40)
    layouter = layouter_of(recipe)
    lengths = sorted(len(layouter(row).ids) for row in rows)
    (use,) = lint(recipe)["sources"]["data.many"]["tokens"]
    assert (use["samples"], use["min"], use["max"], use["total"]) == (40, lengths[0], lengths[-1], sum(lengths))
    assert lengths[19] <= use["median"] <= lengths[20] and use["p95"] in lengths[37:39]
    over = sum(length > 40 for length in lengths)
    assert use["stages"] == {"one": {"length": 40, "over": over, "shrunk": 0, "cut": 0, "dropped": over}}
    edges, counts = use["histogram"]["edges"], use["histogram"]["counts"]
    assert counts == [sum(a <= length < b for length in lengths) for a, b in itertools.pairwise(edges)]
    assert sum(counts) == 40


@pytest.mark.parametrize("settings", [{}, {"mix": "tokens"}, {"steps": None, "epochs": 2}], ids=str)
def test_a_stage_sees_its_own_mixture_and_packs_it(recipe_with, settings):
    draw = random.Random(0)
    data = {
        name: Planted(rows=["bad"] * 40 + [asked(f"{name}{n}", "red " * draw.randint(1, most)) for n in range(560)])
        for name, most in (("short", 6), ("long", 60))
    }
    recipe = recipe_with(data, length=64, shares=[1, 1] if "epochs" in settings else [1, 2], **settings)
    table = lint(recipe)["stages"]["one"]
    stage = StageData(recipe, "one", layouter_of(recipe))
    plans = [stage.plan(window) for window in range(-(-4096 // stage.mixture.window))]
    entries = [entry for plan in plans for pack in plan for entry in pack]
    total, packs = sum(entry.length for entry in entries), sum(map(len, plans))
    assert table["samples"] == len(entries) and table["packed"] == pytest.approx(total / packs / 64, abs=1e-4)
    order = [stage.mixture.at(position) for position in range(len(entries) // 8 * 8)]
    lengths = [int(stage.indexes[key].lengths[stage.usable[key][place]]) for key, place in order]
    batches = [lengths[start : start + 8] for start in range(0, len(lengths), 8)]
    padded = sum(lengths) / sum(8 * max(batch) for batch in batches)
    assert table["padded"] == pytest.approx(padded, abs=1e-4)
    assert table["padded"] < 0.8 < 0.95 < table["packed"] <= 1
    assert table["steps"] == pytest.approx(stage.steps_planned, abs=2)
    sizes = {name: len(usable) for name, usable in stage.usable.items()}
    targets = {name: size / sum(sizes.values()) for name, size in sizes.items()} if "epochs" in settings else SHARES
    for name, size in sizes.items():
        own, row = [entry.length for entry in entries if entry.source == name], table["mixture"][name]
        assert row["target"] == pytest.approx(targets[name], abs=1e-4)
        assert row["samples"] == pytest.approx(len(own) / len(entries), abs=1e-4)
        assert row["tokens"] == pytest.approx(sum(own) / total, abs=1e-4)
        assert row["tokens" if "mix" in settings else "samples"] == pytest.approx(targets[name], abs=0.02)
        epochs = settings.get("epochs") or stage.steps_planned * 2 / packs * len(own) / size
        assert row["epochs"] == pytest.approx(epochs, rel=0.01)


def test_idle_shares_are_those_of_the_steps_of_the_plan(recipe_with, specimen, tmp_path):
    draw = random.Random(0)
    pictures = ("image", Medium(str(tmp_path / "odd.png")))
    Image.new("RGB", (16, 16)).save(tmp_path / "odd.png")
    rows = [asked(str(n), *[pictures] * draw.choice((0, 0, 1, 4)), "red " * draw.randint(1, 30)) for n in range(400)]
    recipe = recipe_with({"odd": Planted(rows=rows, modalities=("image",))}, length=160, steps=20)
    batch = {"length": 160, "packs": 12, "micro": 3}
    one = recipe.stages["one"].model_copy(update={"batch": recipe.stages["one"].batch.model_copy(update=batch)})
    recipe = recipe.model_copy(update={"stages": {"one": one}})
    table = lint(recipe)["stages"]["one"]["idle"]
    assert table["8"] is None, "12 packs cannot be shared by 8 ranks"
    stage, cost = StageData(recipe, "one", layouter_of(recipe)), costing(recipe, "one")
    media, costs = stage.indexes["odd"].cost, []
    for window in range(-(-4096 // stage.mixture.window)):
        for pack in stage.plan(window):
            costs.append(sum(cost(entry.source, entry.length, float(media[entry.number])) for entry in pack))
    assert media.max() == pytest.approx(4 * recipe.encoders["vision"].cost((1, 4, 4)))
    steps = [costs[begin : begin + 12] for begin in range(0, len(costs) - 11, 12)]
    for ranks in (2, 4):
        for key, deal in (("plan", lambda own, *how: in_order(len(own), *how)), ("dealt", dealt)):
            waits, spent = 0.0, 0.0
            for own in steps:
                slots = deal(own, ranks, 3)
                whole = sum(ranks * max(sum(own[n] for n in batch) for batch in slot) for slot in slots)
                waits, spent = waits + whole * idle_share(own, slots), spent + whole
            assert table[str(ranks)][key] == pytest.approx(waits / spent, abs=1e-4)
        assert 0 < table[str(ranks)]["dealt"] < 0.5 * table[str(ranks)]["plan"]


def test_without_a_whole_step_nothing_is_idle(recipe_with):
    recipe = recipe_with({"few": Planted(rows=[asked("1", "1?")])}, steps=None, epochs=1)
    assert lint(recipe)["stages"]["one"]["idle"] == {"2": None, "4": None, "8": None}


def test_what_has_no_room_is_told_by_what_becomes_of_it(recipe_with):
    rows = [asked("a", "red " * 60), asked("b", "red?"), talk("c", ("user", "red"), ("assistant", "red " * 60))]
    (use,) = lint(recipe_with({"long": Planted(rows=rows)}))["sources"]["data.long"]["tokens"]
    assert use["stages"]["one"] == {"length": 48, "over": 2, "shrunk": 0, "cut": 0, "dropped": 2}
    result = lint(recipe_with({"long": Planted(rows=rows)}, cut=True))
    (use,) = result["sources"]["data.long"]["tokens"]
    assert use["stages"]["one"] == {"length": 48, "over": 2, "shrunk": 0, "cut": 1, "dropped": 1}
    (finding,) = result["findings"]
    told = "2 of 3 samples have more than the 48 tokens of a pack of stage one, the longest 65 (0 shrunk, 1 cut, "
    assert finding["message"].startswith(f"data.long: {told}1 dropped); raise stages.one.batch.length")
    assert result["errors"] == 0


def test_a_stage_is_told_of_when_its_sources_are_looked_at(recipe_with):
    data = {"one": Planted(rows=[asked("1", "1?")]), "two": Planted(rows=[asked("2", "2?")])}
    recipe = recipe_with(data, {"one": Planted(rows=[asked("3", "3?")])})
    result = lint(recipe, ["data.one"])
    assert (list(result["sources"]), result["stages"]) == (["data.one"], {})
    assert result["stages_left_out"] == {"one": "data.two not looked at"}
    assert list(lint(recipe, ["one"])["sources"]) == ["data.one", "heldout.one"]
    assert list(lint(recipe, ["heldout", "two"])["sources"]) == ["data.two", "heldout.one"]
    with pytest.raises(ValueError, match=r"--source tow: .* name; did you mean `two`\?"):
        lint(recipe, ["tow"])


def test_memory_stays_flat(recipe_with):
    class Synthetic(Planted):
        def open(self):
            class Generated:
                def __len__(self):
                    return 20_000

                def __getitem__(self, index):
                    return asked(f"sample {index}", f"{index}?")

            return Generated()

    held = {}

    def progress(what, done, total):
        if what == "data.many" and done % 8_000 == 0:
            held[done] = tracemalloc.get_traced_memory()[0]

    recipe = recipe_with({"many": Synthetic()})
    tracemalloc.start()
    try:
        result = lint(recipe, progress=progress)
    finally:
        tracemalloc.stop()
    assert result["sources"]["data.many"]["usable"] == 20_000 and result["findings"] == []
    assert (held[16_000] - held[8_000]) / 8_000 < 80, "bytes of a sample that stay"


# --------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def data_lint(capsys):
    """data_lint("recipe.yaml", ...) -> (exit code, stdout, lines of stderr)."""

    def call(*args):
        with pytest.raises(SystemExit) as left:
            main(["data", "lint", *map(str, args)])
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err.splitlines()

    return call


@pytest.fixture
def recipe_file(recipe_of, parts, tmp_path):
    """recipe_file(lines) -> a recipe's path, whose one source `text` holds these lines of JSONL."""

    def make(*lines):
        (tmp_path / "text.jsonl").write_text("".join(line + "\n" for line in lines))
        source = {"type": "jsonl", "path": str(tmp_path / "text.jsonl")}
        recipe = recipe_of({"one": parts.stage({"text": 1}, {"backbone": 1e-3})}, data={"text": source}, heldout={})
        path = tmp_path / "recipe.yaml"
        path.write_text(dump_recipe(recipe))
        return path

    return make


def line(name, question="one?"):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "red"}]
    return json.dumps({"id": name, "turns": turns})


def test_clean_data_and_warnings_are_code_0(data_lint, recipe_file):
    code, out, err = data_lint(recipe_file(line("a"), line("b", "two?")))
    assert (code, out.splitlines()[-1]) == (0, "nothing is wrong")
    assert err == ["data.text: 2", "stages: 1"]
    code, out, err = data_lint(recipe_file(*(line(f"s{number:02}") for number in range(14))))
    assert code == 0 and out.splitlines()[-1] == "0 errors, 13 warnings"
    shown = [text for text in out.splitlines() if text.startswith("  data.text: sample")]
    assert len(shown) == 10 and "  and 3 more (--json lists all)" in out
    assert "warning: samples that occur twice in a source: 13" in out


def test_records_that_cannot_be_used_are_code_2_and_all_is_told_nevertheless(data_lint, recipe_file):
    path = recipe_file(line("a"), "{", line("b", "two?"))
    code, out, _ = data_lint(path)
    assert code == 2 and out.splitlines()[-1] == "1 error, 0 warnings"
    assert "text.jsonl:2: is no JSON" in out and "What each stage sees" in out
    assert data_lint(path, "--source", "txt")[::2] == (
        2,
        ["--source txt: no stage and no held-out table uses a source of this name; did you mean `text`? sources: text"],
    )
    code, out, _ = data_lint(path, "--set", "data.text.path=nowhere.jsonl")
    assert code == 2 and "nowhere.jsonl is not there; put it there, or name another with --set" in out


def test_the_json_has_the_keys_that_are_promised(data_lint, recipe_file):
    code, out, _ = data_lint(recipe_file(line("a"), "{", line("a")), "--json", "--limit", 3)
    result = json.loads(out)
    assert code == 2
    assert list(result) == [
        *("limit", "media", "errors", "warnings", "sources", "stages", "stages_left_out", "findings"),
    ]
    row = result["sources"]["data.text"]
    assert list(row) == ["records", "looked_at", "usable", "described", "turns", "media", "tokens", "findings"]
    assert list(row["tokens"][0]) == ["as", "stages", "samples", "min", "median", "p95", "max", "total", "histogram"]
    assert {key: len(value) for key, value in row["tokens"][0]["histogram"].items()} == {"edges": 13, "counts": 12}
    stage = result["stages"]["one"]
    assert list(stage) == ["length", "steps", "samples", "packed", "padded", "idle", "mix", "mixture"]
    assert list(stage["idle"]) == ["2", "4", "8"] and list(stage["idle"]["2"]) == ["plan", "dealt"]
    assert list(stage["mixture"]["text"]) == ["target", "samples", "tokens", "epochs"]
    keys = ["kind", "severity", "source", "record", "sample", "message"]
    assert [list(finding) for finding in result["findings"]] == [keys] * 3
    assert [finding["kind"] for finding in result["findings"]] == ["unparsable", "duplicate", "duplicate_id"]
    nothing = json.loads(data_lint(recipe_file("{"), "--json")[1])["sources"]["data.text"]["tokens"][0]
    assert list(nothing) == list(row["tokens"][0]) and len(nothing["histogram"]["edges"]) == 13


def test_ctrl_c_is_code_130(data_lint, recipe_file, registry, monkeypatch):
    class Interrupted(Rows):
        def __getitem__(self, index):
            raise KeyboardInterrupt

    monkeypatch.setattr(registry.get("source", "jsonl"), "open", lambda self: Interrupted([1, 2, 3]))
    code, out, err = data_lint(recipe_file(line("a")))
    assert (code, out, err) == (130, "", ["stopped; nothing is changed by looking"])
