"""What there is to see of a stage's packs: samples, tokens, labels, media; and all of it as numbers.

Everything is taken from the batch that training would see: ids, segments, labels and media places are those that
`collate` made, pictures and spectra those that the readers gave.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from omnikit.component import Item
from omnikit.data import Entry, Plan, Position, StageData, layouter_of
from omnikit.indexing import Progress
from omnikit.packing import Media, collate, read_items
from omnikit.recipe import Recipe, Stage
from omnikit.registry import did_you_mean
from omnikit.sample import BadSample, Branch, Layout, Layouter, Place


class Unread(NamedTuple):
    """Stands as the value of an item that could not be read."""

    reason: str


class Placed(NamedTuple):
    """One medium of a pack, which takes the positions `start` to `end` (not included) of it."""

    place: Place
    item: Item
    start: int
    end: int


class Segment(NamedTuple):
    """One sample of a pack, which takes the positions `start` to `end` (not included) of it."""

    id: str
    source: str
    """Its name in the recipe."""
    kind: str
    start: int
    end: int
    ids: list[int]
    """Of a bad sample, what they would be; none if it cannot even be laid out."""
    media: list[Placed]
    changed: str = ""
    """What was done to it so that it fits: media made smaller, text left out."""
    bad: str = ""
    """Why its positions are padding."""

    @property
    def modalities(self) -> list[str]:
        """The modalities it holds, in order of appearance; of one without media: text."""
        return list(dict.fromkeys(medium.place.modality for medium in self.media)) or ["text"]


class Row(NamedTuple):
    """One pack of T positions."""

    step: int
    length: int
    learned: frozenset[int]
    """Positions whose token is a label."""
    segments: list[Segment]

    @property
    def tokens(self) -> int:
        """Positions that are not padding."""
        return sum(segment.end - segment.start for segment in self.segments if not segment.bad)


class Preview(NamedTuple):
    """Packs of a stage."""

    stage: str
    settings: Stage
    step: int
    rows: list[Row]
    layouter: Layouter


def preview(recipe: Recipe, stage: str, packs: int = 8, step: int = 1, progress: Progress = lambda *_: None) -> Preview:
    """The first `packs` packs of a stage, from step `step` (1 is the first) on. Builds no model.

    A medium that cannot be read becomes `Unread`. An unknown stage, and more than the stage has, is a ValueError.
    `progress` hears of sources that are not indexed yet.
    """
    settings = recipe.stages.get(stage)
    if settings is None:
        raise ValueError(f"--stage {stage}: is no stage of the recipe{did_you_mean(stage, recipe.stages, 'stages')}")
    if step < 1:
        raise ValueError(f"--step {step}: the first step is 1")
    if packs < 1:
        raise ValueError(f"-n {packs}: is no number of packs; ask for 1 or more")
    size = settings.batch.packs
    if settings.steps is not None:  # known before the data are indexed
        _check(stage, step, settings.steps, packs, (settings.steps - step + 1) * size)
    data = StageData(recipe, stage, layouter_of(recipe), progress)
    first = (step - 1) * size
    plans = [plan for plan, _ in itertools.islice(data.packs(Position()), first, first + packs)]
    _check(stage, step, data.steps_planned, packs, len(plans))
    rows = [_row(data, plan, step + number // size) for number, plan in enumerate(plans)]
    return Preview(stage, settings, step, rows, data.layouter)


def _check(stage: str, step: int, steps: int, packs: int, left: int) -> None:
    if step > steps:
        raise ValueError(f"--step {step}: stage {stage} has steps 1 to {steps}")
    if packs > left:
        raise ValueError(f"-n {packs}: from step {step} on, stage {stage} has {left} packs; ask for 1 to {left}")


def summary(shown: Preview) -> dict[str, Any]:
    """The numbers of a preview as plain data: of all packs, of each, and the media that cannot be read."""
    rows = [_numbers(row) for row in shown.rows]
    media = Counter(medium.place.modality for row in shown.rows for one in row.segments for medium in one.media)
    return {
        "stage": shown.stage,
        "step": shown.step,
        "length": shown.settings.batch.length,
        "samples": sum(row["samples"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "labels": sum(row["labels"] for row in rows),
        "padding": 1 - sum(row["tokens"] for row in rows) / (shown.settings.batch.length * len(rows)),
        "media": {name: media[name] for name in shown.layouter.branches if media[name]},
        "packs": rows,
        "bad": [{"sample": one.id, "reason": one.bad} for row in shown.rows for one in row.segments if one.bad],
        "unread": [
            {"sample": one.id, "modality": medium.place.modality, "reason": medium.item.value.reason}
            for row in shown.rows
            for one in row.segments
            for medium in one.media
            if isinstance(medium.item.value, Unread)
        ],
    }


def _numbers(row: Row) -> dict[str, Any]:
    return {
        "step": row.step,
        "samples": len(row.segments),
        "tokens": row.tokens,
        "labels": len(row.learned),
        "media": sum(len(one.media) for one in row.segments),
        "padding": 1 - row.tokens / row.length,
    }


def _row(data: StageData, plan: Plan, step: int) -> Row:
    """A planned pack, read and collated as training does it, except that a bad sample keeps what can be shown of it."""
    length = data.stage.batch.length
    drafts = [_draft(data, entry) for entry in plan]
    items = [item for draft in drafts if not draft.bad for item in draft.items]
    batch = collate([tuple(draft.collated for draft in drafts)], items, length)
    placed = {name: _placed(media) for name, media in batch.media.items()}
    segments, end = [], 0
    for number, (draft, entry) in enumerate(zip(drafts, plan, strict=True), 1):
        layout = draft.layout
        if draft.bad:
            start, end = end, end + entry.length
            ids = layout.ids if layout else []
            places = layout.places if layout else ()
            media = [
                Placed(place, item, start + place.start, start + place.start + place.tokens)
                for place, item in zip(places, draft.items, strict=True)
            ]
        else:
            taken = (batch.segments[0] == number).nonzero().flatten().tolist()
            start, end = taken[0], taken[-1] + 1
            ids = batch.ids[0, start:end].tolist()
            media = [Placed(place, *next(placed[place.modality])) for place in draft.collated.places]
        changed = "; ".join(filter(None, (layout.shrunk, layout.cut and f"cut: {layout.cut}"))) if layout else ""
        segments.append(
            Segment(draft.id, entry.source, draft.kind, start, end, ids, media, changed=changed, bad=draft.bad)
        )
    # The state at a position predicts the token after it.
    learned = frozenset(at + 1 for at in batch.label_at.tolist())
    return Row(step, length, learned, segments)


class _Draft(NamedTuple):
    """A sample of a plan: its layout if it has one, its items, and what stands in the batch for it."""

    id: str
    kind: str
    layout: Layout | None
    items: list[Item]
    collated: Layout
    bad: str


def _draft(data: StageData, entry: Entry) -> _Draft:
    name, kind = f"{entry.source}[{entry.number}]", ""
    try:
        sample = data.sources[entry.source][entry.number]
        name, kind = sample.id, sample.kind
        layout = data.layout(entry)
    except ValueError as error:
        return _Draft(name, kind, None, [], Layout.padding(name, entry.length, str(error)), str(error))
    items = [_read(layout, place, data.layouter.branches) for place in layout.places]
    bad = next((item.value.reason for item in items if isinstance(item.value, Unread)), "")
    return _Draft(name, kind, layout, items, Layout.padding(name, entry.length, bad) if bad else layout, bad)


def _read(layout: Layout, place: Place, branches: Mapping[str, Branch]) -> Item:
    try:
        [item] = read_items((layout._replace(places=(place,)),), branches)
    except (BadSample, TypeError) as error:  # TypeError: an array of a kind that torch does not have
        return Item(Unread(str(error)), place.grid)
    return item


def _placed(media: Media) -> Iterator[tuple[Item, int, int]]:
    """Each item with the positions that the batch gives its tokens."""
    begin = 0
    for item, (_, tokens) in zip(media.items, media.owners, strict=True):
        columns = media.places[begin : begin + tokens].tolist()
        begin += tokens
        yield item, columns[0], columns[-1] + 1
