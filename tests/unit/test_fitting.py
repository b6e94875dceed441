"""A sample that is longer than a pack: its media become smaller, its end goes where that is allowed, else all of it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnikit.component import Medium, Sample, Turn, count
from omnikit.data import layouter_of
from omnikit.sample import BadSample, Branch, Layouter, TooLong


class Steps:
    """A reader of media that can be 8, 5, 3 or 1 features long, and of some that can be of one length only."""

    def grids(self, medium, input):
        return [(9, 1, 1)] if medium.source == "fixed" else [(8, 1, 1), (5, 1, 1), (3, 1, 1), (1, 1, 1)]

    def shrink(self, grid):
        return grid


class Here:
    def grids(self, reader, medium, input):
        return reader.grids(medium, input)


@pytest.fixture(scope="module")
def layouter(recipe_of, parts):
    whole = layouter_of(recipe_of({"one": parts.stage({"text": 1}, {"rest": 1e-3})}))
    return Layouter(whole.chat, whole.tokenizer, {"depth": Branch(Steps(), None, Steps(), Here())})


def sample(*sources, question="a b", answer="red"):
    content = tuple(("depth", Medium(source)) for source in sources)
    return Sample("s", (Turn("user", (*content, ("text", question))), Turn("assistant", (("text", answer),))))


def sizes(layout):
    return [place.tokens for place in layout.places]


def test_what_fits_is_left_as_it_is(layouter):
    whole = layouter(sample("a", "b"))
    assert sizes(whole) == [8, 8]
    assert layouter(sample("a", "b"), room=len(whole.ids)) == whole
    assert layouter(sample("a", "b"), room=1000, cut=True) == whole


@pytest.mark.parametrize(
    ("less", "expected"), [(1, [5, 8]), (3, [5, 8]), (4, [5, 5]), (6, [5, 5]), (7, [3, 5]), (14, [1, 1])]
)
def test_the_medium_with_most_tokens_shrinks_first_and_no_more_than_is_needed(layouter, less, expected):
    whole = layouter(sample("a", "b"))
    fitted = layouter(sample("a", "b"), room=len(whole.ids) - less)
    assert sizes(fitted) == expected and not fitted.cut
    assert len(fitted.ids) == len(whole.ids) - sum(sizes(whole)) + sum(expected)
    assert fitted.shrunk.startswith(f"depth (8, 1, 1) to ({expected[0]}, 1, 1)")


def test_a_shrunk_layout_is_that_of_the_smaller_media(layouter, monkeypatch):
    fitted = layouter(sample("a", "fixed", "b"), room=len(layouter(sample("a", "fixed", "b")).ids) - 5)
    given = iter([place.grid for place in fitted.places])
    monkeypatch.setattr(Steps, "grids", lambda self, medium, input: [next(given)])
    assert layouter(sample("a", "fixed", "b")) == fitted._replace(shrunk="")
    assert sizes(fitted) == [5, 9, 5]


def test_what_is_too_long_at_its_smallest_is_refused_or_cut_where_the_recipe_says_so(layouter):
    long = sample("fixed", "a", question="a b c", answer="red " * 20)
    smallest = len(layouter(long).ids) - 7
    assert sizes(layouter(long, room=smallest)) == [9, 1]
    with pytest.raises(TooLong, match=rf"^sample s: has {smallest} tokens with its media at their smallest, more than"):
        layouter(long, room=smallest - 1)
    cut = layouter(long, room=smallest - 4, cut=True)
    assert len(cut.ids) == smallest - 4 and cut.cut == f"4 of {smallest} tokens" and sizes(cut) == [9, 1]
    assert cut.ids == layouter(long, room=smallest).ids[:-4]


def test_a_cut_never_goes_through_a_medium_and_leaves_something_to_learn(layouter):
    turns = (*sample("a", answer="red").turns, *sample("fixed", answer="blue").turns)
    twice = Sample("s", turns)
    whole = layouter(twice, room=len(layouter(twice).ids) - 7)
    second = whole.places[1]
    for room in range(second.start, second.start + second.tokens):
        cut = layouter(twice, room=room, cut=True)
        assert len(cut.ids) == second.start and len(cut.places) == 1 and any(cut.learned)
    first_label = whole.learned.index(True)
    assert layouter(twice, room=first_label + 1, cut=True).learned.count(True) == 1
    with pytest.raises(TooLong, match=rf"none to learn among the first {first_label}, which is all that a pack"):
        layouter(twice, room=first_label, cut=True)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["a", "b", "fixed"]), max_size=5), st.integers(1, 70), st.booleans())
def test_whatever_comes_out_fits_and_its_places_are_its_tokens(layouter, sources, room, cut):
    made = sample(*sources)
    try:
        layout = layouter(made, room=room, cut=cut)
    except TooLong:
        smallest = len(layouter(made).ids) - 7 * sum(source != "fixed" for source in sources)
        assert smallest > room
        return
    assert len(layout.ids) == len(layout.learned) <= room and any(layout.learned)
    for place in layout.places:
        assert place.tokens == count(place.grid) and place.start + place.tokens <= len(layout.ids)
        span = slice(place.start, place.start + place.tokens)
        assert not any(layout.ids[span]) and not any(layout.learned[span])


def test_a_film_takes_fewer_frames_when_a_pack_is_short(recipe_of, parts, small_windows):
    from omnikit.data import Position, StageData

    def stage(**batch):
        return recipe_of({"one": parts.stage({"video": 1}, {"rest": 1e-3}, batch={"packs": 1, **batch})})

    def taken(length):
        data = StageData(stage(length=length), "one", layouter_of(stage(length=length)))
        step = next(iter(data.steps(Position())))
        return {item.grid for item in step.batches[0].media["video"].items}, data

    whole, _ = taken(64)
    less, data = taken(24)
    assert ({grid[0] for grid in whole}, {grid[0] for grid in less}) == ({3}, {2})
    notes = list(data.indexes["video"].notes())
    assert len(notes) == 160 and {note.what for note in notes} == {"shrunk"}
    assert notes[0].id == "v0" and notes[0].reason.startswith("video (")


def test_a_bad_medium_is_the_samples_fault_and_a_worker_that_cannot_start_is_not(layouter):
    class Failing(Here):
        def grids(self, reader, medium, input):
            raise ValueError("run.workers: no worker can be started")

    other = Layouter(layouter.chat, layouter.tokenizer, {"depth": Branch(Steps(), None, Steps(), Failing())})
    with pytest.raises(ValueError, match=r"^run\.workers: no worker") as caught:
        other(sample("a"))
    assert not isinstance(caught.value, BadSample)
    assert json.dumps(str(caught.value))
