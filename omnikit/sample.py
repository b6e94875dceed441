"""A sample laid out: its token ids, which of them are learned, and the places that its media will take.

Text is cut only at special tokens and at media, and everything between two cuts is encoded in one piece, so that a
text-only conversation has exactly the ids of the backbone's own chat template. A sample's content can never become a
special token.
"""

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol, Self

from omnikit.component import Chat, Grid, Input, Medium, ProjectorConfig, ReaderConfig, Sample, Turn, count
from omnikit.media import MediaError
from omnikit.reading import Reading


class Branch(NamedTuple):
    """What the layout needs of one modality: how media are read, and how many tokens a grid becomes."""

    reader: ReaderConfig
    input: Input
    projector: ProjectorConfig
    reading: Reading = Reading()
    """Where its reader is called."""


class Place(NamedTuple):
    """One medium of a sample: `tokens` positions from `start` belong to it."""

    modality: str
    medium: Medium
    grid: Grid
    start: int
    tokens: int


class BadSample(ValueError):
    """A sample that cannot be used, by its own fault; the message begins with its id."""


class TooLong(BadSample):
    """A sample that does not fit in a pack, however small its media are made."""


@contextmanager
def blamed(name: str, modality: str, error: type[ValueError]) -> Iterator[None]:
    """Turns such an error about a medium of the sample `name` into a BadSample."""
    try:
        yield
    except error as reason:
        raise BadSample(f"sample {name}: {modality}: {reason}") from reason


class Layout(NamedTuple):
    """A sample as the backbone sees it. `ids` holds 0 where media go; `learned[i]`: position i is predicted."""

    id: str
    ids: list[int]
    learned: list[bool]
    places: tuple[Place, ...]
    shrunk: str = ""
    """Which media were made smaller so that the sample fits, in words."""
    cut: str = ""
    """What text was left out so that it fits, in words."""
    bad: str = ""
    """Why nothing of it can be used: its places are padding."""

    @classmethod
    def padding(cls, name: str, length: int, reason: str) -> Self:
        """In the stead of a sample that turned out bad: its places, empty, so that its neighbours stay theirs."""
        return cls(name, [0] * length, [False] * length, (), bad=reason)

    @property
    def group(self) -> str:
        """The modalities it holds, for metrics: "text", "image", "audio+image"."""
        return "+".join(sorted({place.modality for place in self.places})) or "text"


class Encoding(Protocol):
    """The part of `tokenizers.Encoding` that is used."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class AddedToken(Protocol):
    """The part of `tokenizers.AddedToken` that is used."""

    content: str
    special: bool


class Tokenizer(Protocol):
    """The part of `tokenizers.Tokenizer` that is used."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        """Ids and character offsets of a text."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The id of a token."""
        ...

    def get_added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """The added tokens by id, special ones among them."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens left out."""
        ...

    def to_str(self) -> str:
        """All of it as JSON."""
        ...


class Layouter:
    """Lays samples out for one backbone and its modalities."""

    def __init__(self, chat: Chat, tokenizer: Tokenizer, branches: Mapping[str, Branch]) -> None:
        self.chat, self.tokenizer, self.branches = chat, tokenizer, branches
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        # The longest first: <|im_end|> before <|im
        self.special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        self.stop = self._special(chat.stop)
        if chat.suffix.get("assistant", "").count(chat.stop) != 1:
            told = f"backbone.chat.suffix.assistant: does not hold the stop token {chat.stop!r} once"
            raise ValueError(f"{told}; an answer ends with it, and learns to")

    def __call__(
        self,
        sample: Sample,
        rename: Mapping[str, str] | None = None,
        answer: bool = True,
        room: int | None = None,
        cut: bool = False,
    ) -> Layout:
        """The layout of `sample`, each medium at its largest grid.

        `rename` sends a modality's media through another one's branch. With `answer` False the layout stops where the
        last assistant turn's content would begin: the prompt of generation. In a `room` of so many places media become
        smaller, the one with most tokens first, until the sample fits; if that is not enough, it is cut off at its end
        where `cut` says so, never within a medium, and else it is `TooLong`.
        """
        draft = _Draft(self, sample.id)
        turns = sample.turns
        if self.chat.system is not None and turns[0].role != "system":
            turns = (Turn("system", (("text", self.chat.system),)), *turns)
        if not answer:
            last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
            if last < 0:
                raise BadSample(f"sample {sample.id}: has no assistant turn; there is nothing to answer")
            turns = (*turns[:last], Turn("assistant", ()))
        draft.template(self.chat.open)
        for index, turn in enumerate(turns):
            if turn.role not in self.chat.prefix:
                raise ValueError(  # no BadSample: the recipe is at fault
                    f"sample {sample.id}: chat has no prefix for role {turn.role!r}; add it to backbone.chat"
                )
            draft.template(self.chat.prefix[turn.role])
            if not answer and index == len(turns) - 1:
                break
            learned = turn.role == "assistant"
            for name, value in turn.content:
                if isinstance(value, Medium):
                    draft.medium((rename or {}).get(name, name), value)
                else:
                    draft.text(value, learned)
            draft.template(self.chat.suffix.get(turn.role, ""), learn_stop=learned)
        return draft.finish(room, cut)

    @functools.cached_property
    def tokenizer_digest(self) -> str:
        """The sha256 of all that the tokenizer is."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()

    def _special(self, token: str) -> int:
        index = self.tokenizer.token_to_id(token)
        if index is None or not self.special.fullmatch(token):
            raise ValueError(f"backbone.chat: the tokenizer has no special token {token!r}; use one that it has")
        return index


class _Draft:
    """A layout being written: text waits in `pending` until a special token or a medium cuts it."""

    def __init__(self, layouter: Layouter, name: str) -> None:
        self.layouter, self.name = layouter, name
        self.ids: list[int] = []
        self.learned: list[bool] = []
        self.places: list[Place] = []
        self.smaller: list[list[Grid]] = []  # of each place, the grids that its reader also gives, largest first
        self.pending: list[tuple[str, bool]] = []

    def text(self, text: str, learned: bool) -> None:
        if text:
            self.pending.append((text, learned))

    def template(self, text: str, learn_stop: bool = False) -> None:
        """Text of the chat format, the only text in which special tokens are special."""
        begin = 0
        for found in self.layouter.special.finditer(text):
            self.text(text[begin : found.start()], learned=False)
            self._cut()
            index = self.layouter.tokenizer.token_to_id(found[0])
            assert index is not None
            self.ids.append(index)
            self.learned.append(learn_stop and index == self.layouter.stop)
            begin = found.end()
        self.text(text[begin:], learned=False)

    def medium(self, modality: str, medium: Medium) -> None:
        branch = self.layouter.branches.get(modality)
        if branch is None:
            known = ", ".join(self.layouter.branches) or "none"
            raise BadSample(f"sample {self.name}: the recipe has no modality {modality!r}; modalities: {known}")
        chat = self.layouter.chat
        self.template(chat.begin.get(modality, ""))
        self._cut()
        with blamed(self.name, modality, MediaError):  # not if no worker can be started
            grid, *smaller = branch.reading.grids(branch.reader, medium, branch.input)
        with blamed(self.name, modality, ValueError):
            tokens = count(branch.projector.shrink(grid))
        self.places.append(Place(modality, medium, grid, len(self.ids), tokens))
        self.smaller.append(smaller)
        self.ids.extend([0] * tokens)
        self.learned.extend([False] * tokens)
        self.template(chat.end.get(modality, ""))

    def _cut(self) -> None:
        if not self.pending:
            return
        text = "".join(piece for piece, _ in self.pending)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # which the tokenizer calls no text at all
            raise BadSample(
                f"sample {self.name}: text holds half a character ({error.reason}); write it whole"
            ) from None
        spans, begin = [], 0
        for piece, learned in self.pending:
            if learned:
                spans.append((begin, begin + len(piece)))
            begin += len(piece)
        encoding = self.layouter.tokenizer.encode(text, add_special_tokens=False)
        self.ids.extend(encoding.ids)
        # A token is learned when it begins inside learned text; one that straddles the border belongs to its begin.
        self.learned.extend(any(a <= start < b for a, b in spans) for start, _ in encoding.offsets)
        self.pending.clear()

    def finish(self, room: int | None, cut: bool) -> Layout:
        self._cut()
        if not self.ids:
            raise BadSample(f"sample {self.name}: has nothing in it")
        layout = Layout(self.name, self.ids, self.learned, tuple(self.places))
        if room is None or len(layout.ids) <= room:
            return layout
        layout = self._shrink(layout, room)
        if len(layout.ids) <= room:
            return layout
        if not cut:
            at_smallest = " with its media at their smallest" if layout.places else ""
            raise TooLong(
                f"sample {self.name}: has {len(layout.ids)} tokens{at_smallest}, more than a pack of {room}; "
                "raise the stage's batch.length, or let it cut: batch.cut: true"
            )
        return _cut_off(layout, room)

    def _shrink(self, layout: Layout, room: int) -> Layout:
        """Each time the medium with most tokens takes its next smaller grid, until all fits or none has a smaller."""
        shrink = {name: branch.projector.shrink for name, branch in self.layouter.branches.items()}
        places, smaller = list(layout.places), [list(grids) for grids in self.smaller]
        excess = len(layout.ids) - room
        while excess > 0 and (able := [number for number, grids in enumerate(smaller) if grids]):
            number = max(able, key=lambda number: (places[number].tokens, -number))
            grid = smaller[number].pop(0)
            tokens = count(shrink[places[number].modality](grid))
            if tokens < places[number].tokens:
                excess -= places[number].tokens - tokens
                places[number] = places[number]._replace(grid=grid, tokens=tokens)
        return _refilled(layout, places)


def _refilled(layout: Layout, places: list[Place]) -> Layout:
    """The layout with these places, smaller than its own, in the stead of its own."""
    ids: list[int] = []
    learned: list[bool] = []
    moved: list[Place] = []
    end, told = 0, []
    for old, new in zip(layout.places, places, strict=True):
        ids += layout.ids[end : old.start]
        learned += layout.learned[end : old.start]
        moved.append(new._replace(start=len(ids)))
        ids += [0] * new.tokens
        learned += [False] * new.tokens
        end = old.start + old.tokens
        if new.grid != old.grid:
            told.append(f"{old.modality} {old.grid} to {new.grid}")
    ids += layout.ids[end:]
    learned += layout.learned[end:]
    return layout._replace(ids=ids, learned=learned, places=tuple(moved), shrunk=", ".join(told))


def _cut_off(layout: Layout, room: int) -> Layout:
    """The first `room` places of the layout, fewer where a medium lies across the edge."""
    end = min((place.start for place in layout.places if place.start + place.tokens > room), default=room)
    end = min(end, room)
    if not any(layout.learned[1:end]):
        raise TooLong(
            f"sample {layout.id}: has {len(layout.ids)} tokens, and none to learn among the first {end}, which is all "
            f"that a pack of {room} takes; raise the stage's batch.length"
        )
    places = tuple(place for place in layout.places if place.start < end)
    told = f"{len(layout.ids) - end} of {len(layout.ids)} tokens"
    return layout._replace(ids=layout.ids[:end], learned=layout.learned[:end], places=places, cut=told)
