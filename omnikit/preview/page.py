"""The page of a preview: one HTML file that needs nothing else, no script and no network.

Whatever comes from a recipe, a data set or a file's name is escaped, and what is not seen is shown by its number.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from omnikit.component import Medium
from omnikit.pages import fill
from omnikit.preview.media import Room, figure
from omnikit.preview.packs import Placed, Preview, Row, Segment, Unread, summary
from omnikit.preview.tokens import pieces, specials, visible
from omnikit.sample import Layouter

COLOURS = 6
"""Colours of modalities in page.css: the classes m0 to m5."""
SINGLE = 800
"""Tokens of a sample that are shown one by one; the rest is shown as text, by what is learned of it."""
LONG, MANY = 160, 6
"""Tokens of text and pictures that a sample beside others has at most."""


def page_of(name: str, shown: Preview) -> str:
    """The page of a preview of the recipe `name`."""
    numbers = summary(shown)
    names = list(shown.layouter.branches)
    last = shown.rows[-1].step
    packs = _Packs(shown.layouter)
    sections = [packs.section(number, row) for number, row in enumerate(shown.rows, 1)]
    return fill(
        __package__,
        title=f"{visible(name)} · {visible(shown.stage)}",
        lead=_lead(shown, f"step {shown.step}" if last == shown.step else f"steps {shown.step} to {last}"),
        facts=_facts(numbers),
        bad=_bad(len(numbers["bad"]), len(numbers["unread"])),
        legend="".join(
            f'<span class="key"><i class="swatch m{names.index(one) % COLOURS}"></i>{visible(one)}</span>'
            for one in numbers["media"]
        ),
        sounds=_sounds(packs.room),
        packs="".join(sections),
    )


def _lead(shown: Preview, steps: str) -> str:
    batch = shown.settings.batch
    each = _number(batch.packs, "pack")
    rows = _number(len(shown.rows), "pack")
    return (
        f"{rows} of stage {visible(shown.stage)}, {steps}, as the model gets them. A pack is one row of "
        f"{batch.length:,} positions, filled with whole samples that do not see each other; a step takes {each}."
    )


def _facts(numbers: Mapping[str, Any]) -> str:
    tokens = numbers["tokens"]
    facts = [
        ("samples", f"{numbers['samples']:,}", ""),
        ("tokens", f"{tokens:,}", ""),
        ("learned", f"{numbers['labels']:,}", f"{numbers['labels'] / max(tokens, 1):.1%} of the tokens"),
        ("padding", f"{numbers['padding']:.1%}", "of the positions"),
        *((name, f"{count:,}", "media" if count > 1 else "medium") for name, count in numbers["media"].items()),
    ]
    return "".join(
        f"<div><dt>{visible(name)}</dt><dd>{value}<small>{more}</small></dd></div>" for name, value, more in facts
    )


def _bad(samples: int, media: int) -> str:
    """What is wrong, in numbers; the reasons stand where the samples do."""
    told = []
    if samples:
        told.append(f"{_number(samples, 'sample')} cannot be used: the positions are padding.")
    if media:
        told.append(f"{media} {'medium' if media == 1 else 'media'} cannot be read.")
    return f'<p class="bad">{" ".join(told)} The reasons stand below, with the samples.</p>' if told else ""


def _sounds(room: Room) -> str:
    if not room.played or not room.silent:
        return ""
    return f"Of {room.played + room.silent:,} sounds {room.played:,} can be played here, so that the page stays small."


class _Packs:
    """Writes packs, one after another, into the room that the page has."""

    def __init__(self, layouter: Layouter) -> None:
        self.layouter, self.room = layouter, Room()
        self.special = specials(layouter.tokenizer)
        self.colours = {name: f"m{number % COLOURS}" for number, name in enumerate(layouter.branches)}
        openings = (layouter.special.match(prefix) for prefix in layouter.chat.prefix.values())
        self.openings = {found[0] for found in openings if found}

    def section(self, number: int, row: Row) -> str:
        """A pack: its numbers, its bar, and its samples."""
        length, padding = row.length, row.length - row.tokens
        numbers = (
            f"step {row.step} · {_number(len(row.segments), 'sample')} · {row.tokens:,} of {length:,} positions · "
            f"{len(row.learned):,} learned · {padding / length:.1%} padding"
        )
        cards = "".join(self.card(f"p{number}s{i}", i, row, one) for i, one in enumerate(row.segments, 1))
        return f"""<section class="pack" id="p{number}"><h2>Pack {number}<small>{numbers}</small></h2>
{self.bar(number, row)}<div class="cards">{cards}</div></section>
"""

    def bar(self, number: int, row: Row) -> str:
        """The pack's positions as blocks; what lies where is in their titles."""
        length = row.length

        def at(begin: int, end: int) -> str:
            return f'style="left:{begin / length:.4%};width:{(end - begin) / length:.4%}"'

        parts, end = [], 0
        for i, one in enumerate(row.segments, 1):
            end = one.end
            title = f"sample {i}: {visible(one.id)}, {_span(one.start, one.end)}{', padding' if one.bad else ''}"
            label = f"<b>{i}</b>" if (one.end - one.start) / length > 0.022 else ""
            kind = "block bad" if one.bad else "block"
            parts.append(
                f'<a class="{kind}" href="#p{number}s{i}" title="{title}" {at(one.start, one.end)}>{label}</a>'
            )
            for medium in one.media:
                name = medium.place.modality
                title = f"{visible(name)} of sample {i}: {_span(medium.start, medium.end)}"
                broken = " broken" if isinstance(medium.item.value, Unread) else ""
                parts.append(
                    f'<i class="medium {self.colours[name]}{broken}" title="{title}" '
                    f"{at(medium.start, medium.end)}></i>"
                )
        for begin, stop in _runs(sorted(row.learned)):
            title = f"learned: {_span(begin, stop)}"
            parts.append(f'<i class="learned" title="{title}" {at(begin, stop)}></i>')
        if end < length:
            parts.append(f'<i class="padding" title="padding: {_span(end, length)}" {at(end, length)}></i>')
        ticks = "".join(f"<span>{round(length * quarter / 4):,}</span>" for quarter in range(5))
        return f'<div class="bar">{"".join(parts)}</div><div class="ticks" aria-hidden="true">{ticks}</div>'

    def card(self, anchor: str, number: int, row: Row, one: Segment) -> str:
        """A sample: where it comes from, its tokens, its media."""
        learned = sum(position in row.learned for position in range(one.start, one.end))
        tokens = one.end - one.start
        about = ", ".join(filter(None, (one.source, one.kind)))
        numbers = f"{_number(tokens, 'token')}, {learned:,} learned · {_span(one.start, one.end)}"
        notes = f"<p>made to fit: {visible(one.changed)}</p>" if one.changed else ""
        if one.bad:
            told = any(isinstance(medium.item.value, Unread) for medium in one.media)  # with the medium
            reason = "" if told else f": {visible(one.bad)}"
            notes += f'<p class="bad">cannot be used, its positions are padding{reason}</p>'
        stream = f'<div class="stream">{self.stream(row, one)}</div>' if one.ids else ""
        figures = "".join(self.figure(medium) for medium in one.media)
        written = tokens - sum(medium.end - medium.start for medium in one.media)
        wide = " wide" if written > LONG or figures.count("<img") > MANY else ""
        return f"""<article class="card{wide}" id="{anchor}">
<header><h3><span>{number}</span>{visible(one.id)}</h3><p>{visible(about)} · {visible(" + ".join(one.modalities))}</p>
<p>{numbers}</p>{notes}</header>{stream}{f'<div class="media">{figures}</div>' if figures else ""}</article>
"""

    def stream(self, row: Row, one: Segment) -> str:
        """The sample's tokens in order: text by token, a chip for each medium."""
        places = {medium.start: medium for medium in one.media}
        tokens = dict(enumerate(one.ids, one.start))
        parts: list[str] = []
        shown, position = 0, one.start
        while position < one.end:
            special = self.special.get(tokens[position])
            if position in places:
                parts.append(self.chip(places[position]))
                position = places[position].end
            elif special is not None:
                if special in self.openings and parts:
                    parts.append("<br>")
                parts.append(_token(position, tokens[position], special, position in row.learned, "s"))
                position += 1
            else:
                end = position
                while end < one.end and end not in places and tokens[end] not in self.special:
                    end += 1
                ids = [tokens[at] for at in range(position, end)]
                parts += self.text(position, ids, row.learned, single=max(0, SINGLE - shown))
                shown += end - position
                position = end
        return "".join(parts)

    def text(self, start: int, ids: Sequence[int], learned: Collection[int], single: int) -> Iterator[str]:
        """A stretch of text: the first `single` tokens each, the rest in one piece for what is learned and what not."""
        texts = pieces(self.layouter.tokenizer, ids)
        for i in range(min(single, len(ids))):
            yield _token(start + i, ids[i], texts[i], start + i in learned)
        for is_learned, run in groupby(range(single, len(ids)), lambda i: start + i in learned):
            places = list(run)
            begin, end = places[0], places[-1] + 1
            kind = ' class="l"' if is_learned else ""
            title = _span(start + begin, start + end)
            yield f'<i{kind} title="{title}">{visible("".join(texts[begin:end]))}</i>'

    def chip(self, medium: Placed) -> str:
        """A medium's place among the tokens."""
        colour = self.colours[medium.place.modality]
        broken = " broken" if isinstance(medium.item.value, Unread) else ""
        where = _span(medium.start, medium.end, "")
        return (
            f'<span class="chip {colour}{broken}" title="{_placed(medium)}"><b>{visible(medium.place.modality)}</b> '
            f"{_number(medium.end - medium.start, 'token')} at {where}</span>"
        )

    def figure(self, medium: Placed) -> str:
        """A medium as the model gets it, or why it cannot be read."""
        place = medium.place
        colour = self.colours[place.modality]
        name = f'<b class="{colour}">{visible(place.modality)}</b>'
        if isinstance(medium.item.value, Unread):
            reason = f'<p class="bad">{visible(medium.item.value.reason)}</p>'
            return f"<figure>{reason}<figcaption>{name} {_placed(medium, named=False)}</figcaption></figure>"
        inner, words, faults = figure(medium.item, place.medium, self.layouter.branches[place.modality], self.room)
        inner += "".join(f'<p class="bad">{visible(fault)}</p>' for fault in faults)
        said = "".join(f"<small>{visible(word)}</small>" for word in words)
        return f"<figure>{inner}<figcaption>{name} {_placed(medium, named=False)}{said}</figcaption></figure>"


def _token(position: int, index: int, text: str, learned: bool, *kinds: str) -> str:
    kinds = (*kinds, *(["l"] if learned else []), *([] if text else ["part"]))
    title = f"{position} · id {index}" + (" · learned" if learned else "")
    attribute = f' class="{" ".join(kinds)}"' if kinds else ""
    return f'<i{attribute} title="{title}">{visible(text) or "·"}</i>'


def _placed(medium: Placed, named: bool = True) -> str:
    """A medium's place in words: "image: 4 tokens, positions 12-15, grid (1, 4, 4), from a.png"."""
    place = medium.place
    name = f"{visible(place.modality)}: " if named else ""
    grid = ", ".join(map(str, place.grid))
    return (
        f"{name}{_number(medium.end - medium.start, 'token')}, {_span(medium.start, medium.end)}, grid ({grid}), "
        f"from {visible(_file(place.medium))}"
    )


def _file(medium: Medium) -> str:
    if isinstance(medium.source, bytes):
        return str(medium)
    return str(medium._replace(source=Path(medium.source).name))


def _span(start: int, end: int, word: str = "position") -> str:
    many = end - start > 1
    span = f"{start}\N{EN DASH}{end - 1}" if many else f"{start}"
    return f"{word}{'s' if many else ''} {span}" if word else span


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """(first, one after the last) of each unbroken run of rising positions."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and runs[-1][1] == position:
            runs[-1] = runs[-1][0], position + 1
        else:
            runs.append((position, position + 1))
    return runs


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
