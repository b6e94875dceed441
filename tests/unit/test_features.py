"""The feature cache: what is kept, under which name, what is found again, and what a stage does with it."""

import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omnikit import cache, filling
from omnikit.checkpoint import BAD, MEASURED, RunFolder
from omnikit.cli.watching import Lines
from omnikit.component import Medium, Member
from omnikit.data import Position, StageData, layouter_of
from omnikit.distributed import ALONE
from omnikit.features import Shelf, digest_of
from omnikit.filling import use_features
from omnikit.media import MediaError
from omnikit.packing import read_items
from omnikit.recipe import Recipe, frozen_encoders
from omnikit.stages import apply_rules, rules_by_parameter, units_of
from omnikit.stages import recompute as again
from omnikit.starting import begin, start_of
from omnikit.train import train
from omnikit.versions import versions

RULES = {"modalities": 1e-2, "rest": "frozen"}


class Display:
    """Keeps what it is told, but of the shapes of data."""

    def __init__(self):
        self.told, self.made, self.records = [], 0, []

    def indexing(self, source, done, records):
        pass

    def caching(self, what, done, total):
        self.made += what.startswith("features")

    def note(self, text):
        self.told += [] if text.startswith("data.") else [text]

    def stage(self, name, done, steps):
        pass

    def step(self, record):
        self.records.append(record)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("OMNIKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with 24 different pictures and rows.jsonl, which asks of each."""
    folder = tmp_path_factory.mktemp("pictures")
    chance = np.random.default_rng(0)
    rows = []
    for number in range(24):
        Image.fromarray(chance.integers(0, 255, (24, 24, 3), np.uint8)).save(folder / f"{number}.png")
        content = [{"image": f"{number}.png"}, {"text": "colour?"}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
        rows.append(json.dumps({"id": f"p{number}", "turns": turns}))
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def of_pictures(pictures, recipe_of, parts):
    """of_pictures(run={...}, **stage) -> a recipe with one stage that sees each picture once, and caches."""

    def make(run=None, folder=pictures, **settings):
        data = {"rows": {"type": "jsonl", "path": str(folder / "rows.jsonl"), "modalities": ["image"]}}
        entry = parts.stage({"rows": 1}, RULES, **{"steps": None, "cache": True, **settings})
        entry |= {} if entry["steps"] else {"epochs": 1}
        return recipe_of({"one": entry}, data=data, run=run)

    return make


class Filled:
    """The first stage of a recipe after its fill: model, data, and what was told."""

    def __init__(self, recipe, change=lambda model: None, begun=False):
        name = next(iter(recipe.stages))
        self.recipe, self.display = recipe, Display()
        self.model = start_of(recipe, name, RunFolder(Path("none")))
        apply_rules(self.model, rules_by_parameter(dict(self.model.named_parameters()), recipe, name))
        change(self.model)
        self.data = StageData(recipe, name, layouter_of(recipe))
        given = recipe, name, self.model, self.data, Position(), self.data.steps_planned, self.display, begun
        self.used = use_features(*given)

    def steps(self):
        return [step for _, step in zip(range(self.data.steps_planned), self.data.steps(Position()), strict=False)]

    def media(self):
        """(place, item) pairs of the stage's steps, read live, beside the features that the steps get."""
        packs = self.data.steps_planned * self.data.stage.batch.packs
        for pack, _ in itertools.islice(self.data.packs(Position()), packs):
            for entry in pack:
                layout = self.data.layout(entry)
                for place in layout.places:
                    one = (layout._replace(places=(place,)),)
                    yield place, read_items(one, self.data.layouter.branches)[0], read_items(one, self.data.branches)[0]


def shards(folder):
    return sorted(folder.glob("features-*.safetensors"))


# ------------------------------------------------------------------------------------------------- what is kept, where


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_item_is_encoded_alone_and_kept_as_it_came_out(recipe_of, parts, precision):
    data = {"image": 1, "mixed": 1, "video": {"share": 1}}
    filled = Filled(recipe_of({"one": parts.stage(data, RULES, cache=True, steps=6)}, run={"precision": precision}))
    assert filled.used and filled.display.made and not filled.display.told
    seen = set()
    for place, item, stored in filled.media():
        encoder = filled.model.encoders[filled.recipe.modalities[place.modality].encoder]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            features = encoder([item])
        assert stored.grid == item.grid and stored.value.dtype == features.dtype
        assert torch.equal(stored.value, features)
        seen.add(place.modality)
    assert seen == {"image", "video", "audio"}


def test_in_the_steps_no_medium_is_read_and_no_encoder_runs(recipe_of, parts, monkeypatch):
    from omnikit.reading import Reading

    filled = Filled(recipe_of({"one": parts.stage({"mixed": 1, "text": 3}, RULES, cache=True)}))
    monkeypatch.setattr(Reading, "read", lambda *_: pytest.fail("a medium was read"))
    for encoder in filled.model.encoders.values():
        encoder.register_forward_hook(lambda *_: pytest.fail("an encoder ran"))
    for step in filled.steps():
        assert not any(sample.bad for sample in step.samples)
        for batch in step.batches:
            filled.model(batch).total.backward()
    assert all(p.grad is not None for p in filled.model.modalities.parameters()), "where a modality is absent, too"


def test_a_batch_without_the_modality_runs_the_projector_on_the_features_of_the_example(recipe_of, parts):
    filled = Filled(recipe_of({"one": parts.stage({"image": 1, "text": 1}, RULES, cache=True)}))
    [name] = filled.model.stored
    example = filled.model.configs[name].example()
    expected = filled.model.encoders[name]([example._replace(value=torch.from_numpy(example.value))])
    assert torch.equal(filled.model.example("image").value, expected)
    text = filled.steps()[0].batches[0]._replace(media={})
    filled.model(text).total.backward()
    assert all(not p.grad.any() for p in filled.model.modalities["image"].parameters())


def test_what_is_in_the_cache_is_not_made_again(of_pictures, own_folder):
    first = Filled(of_pictures(steps=2))
    before = {path: path.stat().st_mtime_ns for path in shards(own_folder)}
    assert 0 < first.display.made < 24
    again = Filled(of_pictures(steps=2))
    assert again.used and again.display.made == 0
    more = Filled(of_pictures())
    assert more.display.made == 24 - first.display.made, "what other steps need comes on top"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_shards_are_cut_by_items_and_by_bytes(of_pictures, own_folder, monkeypatch):
    monkeypatch.setattr(filling, "ITEMS", 10)
    Filled(of_pictures())
    assert len(shards(own_folder)) == 3
    monkeypatch.setattr(filling, "BYTES", 5 * 16 * 16 * 4)
    Filled(of_pictures(run={"precision": "bf16"}))
    assert len(shards(own_folder)) > 3 + 2


def moved(model):
    with torch.no_grad():
        next(model.encoders["vision"].parameters()).view(-1)[0] += 1e-3


@pytest.mark.parametrize("what", ["weights", "precision", "encoder", "reader", "limits", "versions"])
def test_whatever_decides_features_makes_them_anew(of_pictures, parts, recipe_of, monkeypatch, what):
    recipe = of_pictures(steps=2)
    first = Filled(recipe)
    change = lambda model: None  # noqa: E731
    if what == "weights":
        change = moved
    elif what == "precision":
        recipe = of_pictures(run={"precision": "bf16"}, steps=2)
    elif what == "encoder":
        encoder = recipe.encoders["vision"].model_copy(update={"gelu": "erf"})
        recipe = recipe.model_copy(update={"encoders": recipe.encoders | {"vision": encoder}})
    elif what == "reader":
        tree = recipe.model_dump(mode="json", by_alias=True)["modalities"]
        tree["image"]["reader"] = {"type": "anyres", "max_tiles": 1}
        tables = {"data": recipe.model_dump(mode="json")["data"], "modalities": tree}
        recipe = recipe_of({"one": parts.stage({"rows": 1}, RULES, cache=True, steps=2)}, **tables)
    elif what == "limits":
        recipe = recipe.model_copy(update={"limits": recipe.limits.model_copy(update={"pixels": 1000})})
    else:
        monkeypatch.setattr("omnikit.features.versions", lambda: {"omnikit-siglip": "9"})
    second = Filled(recipe, change)
    assert second.display.made == first.display.made > 0
    places = {place.medium.source: stored.value for place, _, stored in second.media()}
    for place, item, _ in second.media():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=what == "precision"):
            assert torch.equal(places[place.medium.source], second.model.encoders["vision"]([item]))


def test_names_of_weights_and_time_for_reading_change_nothing(of_pictures):
    recipe = of_pictures(steps=2)
    Filled(recipe)
    more = recipe.limits.model_copy(update={"read_seconds": 7.0})
    assert Filled(recipe.model_copy(update={"limits": more})).display.made == 0


def test_a_digest_is_of_names_shapes_and_numbers():
    def of(**tensors):
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return digest_of(module)

    one = torch.arange(6.0)
    found = [
        of(a=one),
        of(b=one),
        of(a=one.view(2, 3)),
        of(a=one + 1e-6),
        of(a=one.bfloat16()),
        of(a=one.to(torch.int32)),
        of(a=torch.tensor(1.0)),
    ]
    assert len(set(found)) == len(found) and of(a=one) == of(a=one.clone())
    assert of(a=one.view(2, 3).T.contiguous().T) == of(a=one.view(2, 3)), "however it lies in memory"


def test_an_item_is_named_by_its_bytes_part_and_grid(tmp_path):
    content = b"what a picture is made of"
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "shard").write_bytes(b"before" + content + b"after")
    (tmp_path / "other").write_bytes(content[:-1] + b"F")
    shelf, grid, path = Shelf("0"), (1, 2, 2), str(tmp_path / "a")
    member = Member("a", 6, len(content))
    same = [
        Medium(path),
        Medium(content),
        Medium(str(tmp_path / "shard"), member=member),
        Medium(b"before" + content, member=member),
    ]
    names = {shelf.item(medium, grid) for medium in same}
    assert len(names) == 1
    others = {
        shelf.item(Medium(str(tmp_path / "other")), grid),
        shelf.item(Medium(path, 0.0, 1.0), grid),
        shelf.item(Medium(path, 0.0, 2.0), grid),
        shelf.item(Medium(path), (1, 4, 1)),
        shelf.item(Medium(str(tmp_path / "shard")), grid),
        shelf.item(Medium(str(tmp_path / "shard"), member=member._replace(length=len(content) - 1)), grid),
    }
    assert len(others) == 6 and not names & others
    (tmp_path / "shard").write_bytes(b"before" + content[:-1] + b"F" + b"after")
    assert shelf.item(same[2], grid) not in names, "a shard that changed is read again"
    assert shelf.get(Medium(str(tmp_path / "gone")), grid) is None and shelf.get(Medium("a\0b"), grid) is None


def test_a_grid_of_its_own_has_features_of_its_own(recipe_of, parts):
    """The same clip in packs that hold three frames of it, and in packs that hold fewer."""
    found = {}
    for length in (48, 18):
        batch = {"length": length, "packs": 2, "micro": 1}
        filled = Filled(recipe_of({"one": parts.stage({"video": 1}, RULES, cache=True, batch=batch)}))
        for place, _, stored in filled.media():
            assert len(stored.value) == stored.grid[0] * stored.grid[1] * stored.grid[2]
            found.setdefault(place.medium.source, {})[place.grid] = len(stored.value)
    assert any(len(grids) == 2 for grids in found.values())


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["half", "empty", "header", "longer"])
def test_a_damaged_shard_is_made_anew(of_pictures, own_folder, monkeypatch, damage):
    monkeypatch.setattr(filling, "ITEMS", 8)
    Filled(of_pictures())
    path, *whole = shards(own_folder)
    content = path.read_bytes()
    path.write_bytes(
        {
            "half": content[: len(content) // 2],
            "empty": b"",
            "header": b"\xff" * 8 + content[8:],
            "longer": content + b"0",
        }[damage]
    )
    with pytest.warns(UserWarning, match=r"is damaged .*; its features are made anew"):
        again = Filled(of_pictures())
    assert again.display.made == 8
    assert path.read_bytes() == content and shards(own_folder) == sorted([path, *whole])
    for place, item, stored in again.media():
        assert torch.equal(stored.value, again.model.encoders["vision"]([item])), place


# --------------------------------------------------------------------------------------------------------- bad media


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def some_broken(pictures, tmp_path):
    """The pictures, of which every sixth has a whole header and half a body."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes((pictures / "rows.jsonl").read_bytes())
    for number in range(24):
        Image.effect_noise((64, 64), 99).convert("RGB").save(folder / f"{number}.png")
        if number % 6 == 5:
            half(folder / f"{number}.png")
    return folder


def without_time(record):
    return {key: value for key, value in record.items() if key not in (*MEASURED, "loss", "losses", "norm", "flops")}


def test_a_bad_medium_is_padding_and_listed_as_without_a_cache(of_pictures, some_broken, tmp_path):
    found = {}
    for cached in (True, False):
        display = Display()
        run = train(of_pictures(folder=some_broken, cache=cached), tmp_path / str(cached), display)
        lines = (tmp_path / str(cached) / BAD).read_text()
        state = run.latest("one").state()
        assert state["cached"] is cached
        found[cached] = lines, state["ledger"], [without_time(record) for record in display.records]
    assert found[True] == found[False] and found[True][0].count("cannot be decoded") + found[True][0].count("bad") > 2


def test_a_shard_of_nothing_but_bad_media_is_not_written(of_pictures, some_broken, own_folder, monkeypatch):
    monkeypatch.setattr(filling, "ITEMS", 1)
    filled = Filled(of_pictures(folder=some_broken))
    assert filled.used and len(shards(own_folder)) == 20
    assert not [*own_folder.glob("*.part"), *own_folder.glob("*.lock")]


def test_a_medium_that_changed_or_came_since_the_fill_is_bad(of_pictures, pictures, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    filled = Filled(of_pictures(folder=folder))
    place = next(place for place, _, _ in filled.media())
    branch = filled.data.branches["image"]
    assert len(branch.reading.read(branch.reader, place.medium, branch.input, place.grid).value) == 16
    Image.new("RGB", (24, 24), "red").save(place.medium.source)
    with pytest.raises(MediaError, match=r"\.png: could not be read, or was another file, when the stage's features"):
        branch.reading.read(branch.reader, place.medium, branch.input, place.grid)
    bad = [sample.bad for step in filled.steps() for sample in step.samples if sample.bad]
    assert bad and all("was another file" in line for line in bad)
    Path(place.medium.source).unlink()
    with pytest.raises(MediaError, match="cannot be opened"):
        branch.reading.read(branch.reader, place.medium, branch.input, place.grid)


def test_a_medium_that_changes_while_it_is_read_is_not_kept(of_pictures, pictures, own_folder, tmp_path, monkeypatch):
    from omnikit.reading import Reading

    folder = tmp_path / "mine"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    read = Reading.read

    def overtaken(self, reader, medium, input, grid):
        if medium.source.endswith("/7.png"):
            Image.new("RGB", (24, 24), "red").save(medium.source)
        return read(self, reader, medium, input, grid)

    with monkeypatch.context() as patch:
        patch.setattr(Reading, "read", overtaken)
        Filled(of_pictures(folder=folder))
    (folder / "7.png").write_bytes((pictures / "7.png").read_bytes())
    again = Filled(of_pictures(folder=folder))
    assert again.display.made == 1
    for _, item, stored in again.media():
        assert torch.equal(stored.value, again.model.encoders["vision"]([item]))


# ---------------------------------------------------------------------------------------------------------- no room


def test_features_that_do_not_fit_are_not_made_and_the_stage_runs_live_to_its_end(of_pictures, own_folder, tmp_path):
    fits = 24 * 16 * 16 * 4
    filled = Filled(of_pictures(run={"cache_bytes": fits}))
    last = filled.data.steps_planned
    assert filled.used and last > 2
    for path in shards(own_folder):
        path.unlink()
    recipe = of_pictures(run={"cache_bytes": fits - 1, "save": 1, "keep": 100})
    display = Display()

    class Killed(Exception):
        pass

    def die(record):
        if record["step"] == last - 1:
            raise Killed

    display.step = die
    with pytest.raises(Killed):
        train(recipe, tmp_path / "run", display)
    told = "stage one: its features take more than run.cache_bytes (24,575 bytes); it reads and encodes its media in"
    assert [line.startswith(told) for line in display.told] == [True]
    display = Display()  # the step that remains would fit
    run = train(recipe, tmp_path / "run", display)
    assert not display.told and not shards(own_folder) and run.latest("one").state()["cached"] is False


def test_packs_are_dealt_by_what_a_stage_costs_that_runs_live_after_all(of_pictures, tmp_path):
    costs = []
    for name, room in (("kept", 24 * 16 * 16 * 4), ("live", 24 * 16 * 16 * 4 - 1)):
        recipe = of_pictures(run={"cache_bytes": room})
        run, display = RunFolder(tmp_path / name), Display()
        run.begin(recipe, run.check(recipe))
        begun = begin(recipe, "one", run, layouter_of(recipe), display, ALONE)
        assert begun.cached == (name == "kept")
        costs.append(begun.data.costing("rows", 40, 1e6))
    assert costs[1] == pytest.approx(costs[0] + 1e6)


def test_what_makes_a_mediums_input_is_in_the_key_of_its_features():
    assert "openai-whisper" in versions(), "a plugin requires it"


def test_media_that_many_records_share_are_counted_and_made_once(recipe_of, parts):
    entry = parts.stage({"image": 1, "mixed": 1}, {"encoders.audio": 1e-3, **RULES}, steps=30, cache=True)
    filled = Filled(recipe_of({"one": entry}, run={"cache_bytes": 8 * 16 * 16 * 4}))
    assert filled.used and filled.display.made == 8


def test_a_full_disk_is_seen_before_the_fill_and_refused_within_it(of_pictures, own_folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(filling, "_free", lambda: 1000)
        filled = Filled(of_pictures())
        assert not filled.used and f"and {own_folder} has room for 1,000;" in filled.display.told[0]
        assert not filled.model.stored and filled.data.branches is filled.data.layouter.branches
        with pytest.raises(ValueError, match=r"^stages\.one\.cache: its features take .*, but it was begun with them;"):
            Filled(of_pictures(), begun=True)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise filling.SafetensorError("No space left on device")

    monkeypatch.setattr(filling, "save_file", full)
    with pytest.raises(ValueError, match=r"^stages\.one\.cache: features cannot be written to ") as caught:
        Filled(of_pictures())
    assert "\n" not in str(caught.value) and not shards(own_folder)
    assert not [path for path in cache._temporary().iterdir() if path.name.startswith("features")]


# ----------------------------------------------------------------------------------------------------- what is frozen


@pytest.mark.parametrize(
    ("data", "rules", "frozen"),
    [
        ({"image": 1}, RULES, ("vision",)),
        ({"mixed": 1}, {"encoders.audio": 1e-3, "rest": "frozen"}, ("vision",)),
        ({"mixed": 1}, {"encoders.vision": "frozen", "rest": 1e-3}, ("vision",)),
        ({"mixed": 1}, {"encoders": "frozen", "rest": 1e-3}, ("vision", "audio")),
        ({"mixed": 1}, {"encoders.vision.tower.embeddings": "frozen", "encoders": 1e-3, "rest": "frozen"}, ()),
        ({"mixed": 1}, {"encoders.vision.tower.embeddings": 1e-3, "rest": "frozen"}, ("audio",)),
        ({"mixed": 1}, {"encoders.vision.tower.embeddings": "frozen", "rest": 1e-3}, ()),
        ({"text": 1}, {"backbone": 1e-3}, ()),
    ],
)
def test_frozen_encoders_are_those_of_which_no_parameter_trains(recipe_of, parts, data, rules, frozen):
    recipe = recipe_of({"one": parts.stage(data, rules)})
    assert frozen_encoders(recipe, "one") == frozen
    model = start_of(recipe, "one", RunFolder(Path("none")))
    apply_rules(model, rules_by_parameter(dict(model.named_parameters()), recipe, "one"))
    found = [n for n, e in model.encoders.items() if not any(p.requires_grad for p in e.parameters())]
    assert tuple(found) == frozen


def test_a_recipe_that_caches_what_trains_is_refused(recipe_of, parts, registry):
    def checked(data, rules):
        from omnikit.recipe import dump_recipe, load_recipe

        recipe = recipe_of({"one": parts.stage(data, rules, cache=True)})
        assert isinstance(recipe, Recipe)
        path = Path(os.environ["OMNIKIT_CACHE"]).with_name("recipe.yaml")
        path.write_text(dump_recipe(recipe))
        return load_recipe(path, registry)

    with pytest.raises(ValueError, match=r"stages\.one\.cache: features of an encoder that trains cannot be kept, and "
                       r"vision, audio trains; remove it, or write `encoders\.vision: frozen`$"):  # fmt: skip
        checked({"mixed": 1}, {"rest": 1e-3})
    with pytest.raises(ValueError, match=r"stages\.one\.cache: no sample of the stage passes through an encoder"):
        checked({"text": 1}, {"backbone": 1e-3, "rest": "frozen"})
    assert checked({"mixed": 1}, {"encoders.vision": "frozen", "rest": 1e-3}).stages["one"].cache


def test_of_two_encoders_the_frozen_one_is_cached_and_the_other_trains(recipe_of, parts, tmp_path, tensors_of):
    rules = {"encoders.audio": 1e-2, "modalities": 1e-2, "rest": "frozen"}
    recipe = recipe_of({"one": parts.stage({"mixed": 1, "video": 1}, rules, cache=True)})
    filled = Filled(recipe)
    assert set(filled.model.stored) == {"vision"} and filled.data.branches["audio"].reading == (
        filled.data.layouter.branches["audio"].reading
    )
    before = {name: tensor.clone() for name, tensor in filled.model.encoders["audio"].state_dict().items()}
    end = tensors_of(train(recipe, tmp_path / "run", Display()).latest("one").folder)
    assert any(not torch.equal(end[f"encoders.audio.{name}"], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("recompute", [False, True])
def test_a_frozen_encoder_with_dropout_is_run_without_it(of_pictures, monkeypatch, recompute):
    from omnikit_siglip.module import SiglipEncoder

    forward = SiglipEncoder.forward
    monkeypatch.setattr(
        SiglipEncoder, "forward", lambda self, items: torch.dropout(forward(self, items), 0.5, self.training)
    )
    filled = Filled(of_pictures(steps=2), lambda model: again(units_of(model)) if recompute else None)
    for _, item, stored in filled.media():
        assert torch.equal(stored.value, forward(filled.model.encoders["vision"], [item])) and stored.value.all()


def test_an_encoder_that_gives_other_than_its_grid_is_named(of_pictures):
    def shorten(model):
        model.encoders["vision"].register_forward_hook(lambda module, given, features: features[1:])

    with pytest.raises(ValueError, match=r"^encoders\.vision: gave 15 features for an item of 16$"):
        Filled(of_pictures(), shorten)


# ------------------------------------------------------------------------------------------------------------ display


def test_lines_tell_of_a_fill_that_took_a_while(capsys, monkeypatch):
    lines, now = Lines(["one"], 10), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for done in range(1, 4):
        lines.caching("features of one", done, 3)
        now[0] += 20
    lines.caching("features of two", 3, 3)
    assert capsys.readouterr().err == "features of one: 3 in 40 s\n"
