"""The index: what it holds, when it is made again, and that a build that is cut off goes on."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from omnikit import cache, indexing
from omnikit.data import StageData, layouter_of
from omnikit.indexing import index_of


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNIKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path, world, recipe_of, parts):
    """pictures(number, length) -> a recipe of that many questions about pictures of their own."""

    def make(number=6, length=48, **settings):
        lines = []
        for name in range(number):
            if not (tmp_path / f"{name}.png").exists():
                shutil.copy(world / f"{name % 8}.png", tmp_path / f"{name}.png")
            content = [{"image": f"{name}.png"}, {"text": "colour?"}]
            turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
            lines.append(json.dumps({"id": f"s{name}", "turns": turns}))
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        data = {"rows": {"type": "jsonl", "path": str(tmp_path / "rows.jsonl"), "modalities": ["image"]} | settings}
        batch = {"length": length, "packs": 2}
        return recipe_of({"one": parts.stage({"rows": 1}, {"rest": 1e-3}, batch=batch)}, data=data)

    return make


class Counted:
    def __init__(self):
        self.calls = []

    def __call__(self, source, done, records):
        self.calls.append((source, done, records))


def rows_of(recipe):
    return recipe.data["rows"].open()


def indexed(recipe, wanted=None):
    progress = Counted()
    return index_of(recipe, "one", "rows", rows_of(recipe), layouter_of(recipe), progress, wanted), progress.calls


def entries():
    return sorted(path.name for path in cache.folder().glob("index-*"))


def test_lengths_are_those_of_layouts_and_costs_those_of_encoders(pictures):
    recipe = pictures()
    index, calls = indexed(recipe)
    layouter, samples = layouter_of(recipe), rows_of(recipe)
    layouts = [layouter(sample) for sample in samples]
    assert index.lengths.tolist() == [len(layout.ids) for layout in layouts]
    assert index.cost.tolist() == pytest.approx(
        [recipe.encoders["vision"].cost(layout.places[0].grid) for layout in layouts]
    )
    assert list(index.notes()) == [] and calls == [("rows", 6, 6)]


def test_it_is_made_once_and_again_only_for_what_changes_it(pictures):
    recipe = pictures()
    first, _ = indexed(recipe)
    again, calls = indexed(recipe)
    assert calls == [] and again.digest == first.digest and len(entries()) == 2
    for other in (pictures(length=50), pictures(number=7)):
        assert indexed(other)[1] != [], "another length of packs, other records"
    assert indexed(pictures(max_bad=0.5))[1] == [], "what is allowed changes no length"


def test_media_that_change_are_seen_and_those_that_were_bad_are_tried_again(pictures, tmp_path):
    recipe = pictures(max_bad=0.5)
    (tmp_path / "3.png").write_bytes(b"no picture")
    broken, _ = indexed(recipe)
    assert broken.lengths[3] == 0 and np.count_nonzero(broken.lengths) == 5
    [note] = broken.notes()
    assert (note.id, note.what) == ("s3", "bad") and "3.png" in note.reason
    shutil.copy(tmp_path / "0.png", tmp_path / "3.png")
    mended, calls = indexed(recipe)
    assert calls and mended.lengths.all() and mended.digest != broken.digest
    assert indexed(recipe)[1] == [], "the mended one is kept"
    taken, calls = indexed(recipe, broken.digest)
    assert calls == [] and taken.lengths.tolist() == broken.lengths.tolist(), "who goes on has what he began with"


def test_a_touched_file_is_looked_at_again_and_gives_the_same_digest(pictures, tmp_path):
    recipe = pictures()
    first, _ = indexed(recipe)
    os.utime(tmp_path / "2.png", ns=(1, 1))
    again, calls = indexed(recipe)
    assert calls and again.digest == first.digest


def test_a_build_that_is_cut_off_goes_on_after_its_last_whole_part(pictures, monkeypatch):
    monkeypatch.setattr(indexing, "PART", 2)
    recipe = pictures(7)
    layouter, seen = layouter_of(recipe), []

    class Watched:
        chat, tokenizer_digest = layouter.chat, layouter.tokenizer_digest

        def __call__(self, sample, *args, **options):
            if sample.id == "s5" and len(seen) < 6:
                raise KeyboardInterrupt
            seen.append(sample.id)
            return layouter(sample, *args, **options)

    with pytest.raises(KeyboardInterrupt):
        index_of(recipe, "one", "rows", rows_of(recipe), Watched(), Counted())
    assert seen[:5] == ["s0", "s1", "s2", "s3", "s4"] and "s5" not in seen
    assert not any(name.endswith((".npy", ".jsonl")) for name in entries())
    cut = [*seen]
    seen.extend([""] * 6)
    index = index_of(recipe, "one", "rows", rows_of(recipe), Watched(), Counted())
    assert [name for name in seen[len(cut) :] if name][:2] == ["s4", "s5"], "not from the beginning"
    assert set(seen) - {""} == {f"s{number}" for number in range(7)} and len(index.lengths) == 7
    assert len(entries()) == 2, "the parts are gone"
    monkeypatch.setenv("OMNIKIT_CACHE", str(cache.folder().with_name("other")))
    assert index_of(recipe, "one", "rows", rows_of(recipe), layouter, Counted()).digest == index.digest, (
        "whatever the parts"
    )


def test_records_that_cannot_be_used_are_in_no_plan(pictures, tmp_path, small_windows):
    recipe = pictures(8, max_bad=0.5)
    for name in (1, 4):
        (tmp_path / f"{name}.png").unlink()
    data = StageData(recipe, "one", layouter_of(recipe))
    planned = [entry.number for window in range(3) for pack in data.plan(window) for entry in pack]
    assert set(planned) == {0, 2, 3, 5, 6, 7}
    assert data.may_fail == {"rows": pytest.approx((0.5 * 8 - 2) / 6)}, "the bad ones that are known count too"
    too_many = pictures(8, max_bad=0.2)
    for name in (1, 4):
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(ValueError, match=r"^data\.rows: 2 of its 8 records are bad, more than max_bad 0\.2 allows"):
        StageData(too_many, "one", layouter_of(too_many))


def test_a_medium_that_changes_its_size_while_it_is_used_is_a_bad_sample(tmp_path, recipe_of, parts, pictures):
    recipe = pictures(4)
    anyres = {"reader": {"type": "anyres", "max_tiles": 4}, "encoder": "vision", "projector": "pool_mlp"}
    source = recipe.data["rows"].model_dump(mode="json")
    stage = parts.stage({"rows": 1}, {"rest": 1e-3}, batch={"length": 64, "packs": 2})
    recipe = recipe_of({"one": stage}, modalities={**parts.modalities, "image": anyres}, data={"rows": source})
    data = StageData(recipe, "one", layouter_of(recipe))
    [entry] = [entry for pack in data.plan(0) for entry in pack if entry.number == 2][:1]
    assert data.read(entry)[0].bad == ""
    Image.new("RGB", (64, 16)).save(tmp_path / "2.png")
    layout, items = data.read(entry)
    assert layout.id == "s2", "by which it is found"
    assert "when it was indexed; its media have changed since" in layout.bad and items == []
    assert len(layout.ids) == entry.length and not any(layout.learned)
