"""A sample laid out: its token ids, which of them are learned, and the places that its media will take.

Text is cut only at special tokens and at media, and everything between two cuts is encoded in one piece, so that a
text-only conversation has exactly the ids of the backbone's own chat template. A sample's content can never become a
special token.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from omnikit.component import Chat, Grid, Input, Medium, ProjectorConfig, ReaderConfig, Sample, Turn, count
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


class Layout(NamedTuple):
    """A sample as the backbone sees it. `ids` holds 0 where media go; `learned[i]`: position i is predicted."""

    id: str
    ids: list[int]
    learned: list[bool]
    places: tuple[Place, ...]

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


class Layouter:
    """Lays samples out for one backbone and its modalities."""

    def __init__(self, chat: Chat, tokenizer: Tokenizer, branches: Mapping[str, Branch]) -> None:
        self.chat, self.tokenizer, self.branches = chat, tokenizer, branches
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        # The longest first: <|im_end|> before <|im
        self.special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        self.stop = self._special(chat.stop)

    def __call__(self, sample: Sample, rename: Mapping[str, str] | None = None, answer: bool = True) -> Layout:
        """The layout of `sample`, each medium at its largest grid.

        `rename` sends a modality's media through another one's branch. With `answer` False the layout stops where the
        last assistant turn's content would begin: the prompt of generation.
        """
        draft = _Draft(self, sample.id)
        turns = sample.turns
        if self.chat.system is not None and turns[0].role != "system":
            turns = (Turn("system", (("text", self.chat.system),)), *turns)
        if not answer:
            last = max((index for index, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
            if last < 0:
                raise ValueError(f"sample {sample.id}: has no assistant turn; there is nothing to answer")
            turns = (*turns[:last], Turn("assistant", ()))
        draft.template(self.chat.open)
        for index, turn in enumerate(turns):
            if turn.role not in self.chat.prefix:
                raise ValueError(
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
        return draft.finish()

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
            raise ValueError(f"sample {self.name}: the recipe has no modality {modality!r}; modalities: {known}")
        chat = self.layouter.chat
        self.template(chat.begin.get(modality, ""))
        self._cut()
        try:
            grid = branch.reading.grids(branch.reader, medium, branch.input)[0]
            tokens = count(branch.projector.shrink(grid))
        except ValueError as error:
            raise ValueError(f"sample {self.name}: {modality}: {error}") from error
        self.places.append(Place(modality, medium, grid, len(self.ids), tokens))
        self.ids.extend([0] * tokens)
        self.learned.extend([False] * tokens)
        self.template(chat.end.get(modality, ""))

    def _cut(self) -> None:
        if not self.pending:
            return
        text = "".join(piece for piece, _ in self.pending)
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

    def finish(self) -> Layout:
        self._cut()
        if not self.ids:
            raise ValueError(f"sample {self.name}: has nothing in it")
        return Layout(self.name, self.ids, self.learned, tuple(self.places))
