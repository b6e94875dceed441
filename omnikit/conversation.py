"""A conversation with a trained run: several turns, media in any of them, answers as they are written.

What has been said is kept as the backbone's cache, so nothing of an earlier turn is read, encoded or computed again.

Letters: T positions of a turn, S positions so far, H backbone width.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from omnikit.component import Medium, Sample, Turn
from omnikit.generate import Run
from omnikit.packing import collate, read_items
from omnikit.sample import Layout, TooLong
from omnikit.sampling import Sampling, chooser

Content = Sequence[tuple[str, str | Medium]]
"""What a turn holds, in order: pairs of "text" or a modality, and a text or a medium."""
UNFINISHED = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


class Conversation:
    """Turns of a user and a run. One that cannot be asked (a file that is no picture, no room left) is as if unsaid."""

    def __init__(self, run: Run, max_tokens: int = 256, sampling: Sampling | None = None) -> None:
        """Answers have `max_tokens` tokens at most; without `sampling` they are of the likeliest ones."""
        self.run, self.max_tokens, self.sampling = run, max_tokens, sampling
        self.is_reading = False
        """Whether a message's media are being read and encoded: what is raised then leaves it unsaid."""
        self.reset()

    def reset(self) -> None:
        """Forget what has been said."""
        self.positions = 0
        """How many the cache holds."""
        self._cache: Any = None
        self._is_torn = False
        """Whether something was raised while a token was computed: nobody knows then what the cache holds."""
        self._unfed: list[int] = []
        """Tokens that were said and are not in the cache: the last one of an answer."""
        self._choose = chooser(self.sampling, ["conversation"])

    def ask(self, text: str = "", **media: str | Path | Sequence[str | Path]) -> str:
        """The answer to media and a text after them: `ask("how many?", image="a.png")`, or lists of files."""
        return "".join(self.stream(text, **media))

    def stream(self, text: str = "", **media: str | Path | Sequence[str | Path]) -> Iterator[str]:
        """The pieces of the answer to what `ask` takes, as they are written."""
        content: list[tuple[str, str | Medium]] = []
        for modality, given in media.items():
            files = [given] if isinstance(given, str | Path) else given
            content += [(modality, Medium(str(Path(file).absolute()))) for file in files]
        return self.say([*content, *([("text", text)] if text else [])])

    @torch.inference_mode()
    def say(self, content: Content) -> Iterator[str]:
        """The pieces of the answer to a turn of texts and media in any order, as they are written."""
        model, stop = self.run.model, self.run.layouter.stop
        self.is_reading = True
        try:
            layout = self._turn(content)
            items = read_items((layout,), self.run.layouter.branches)
            embeds = model.embed(collate([(layout,)], items, len(layout.ids)).to(self.run.device))
        finally:
            self.is_reading = False
        pieces = _Pieces(self.run.layouter.tokenizer.decode)
        for _ in range(self.run.most(self.positions + embeds.shape[1], self.max_tokens)):
            mask = torch.ones(1, self.positions + embeds.shape[1], dtype=torch.long, device=embeds.device)
            self._is_torn = True
            hidden, self._cache = model.backbone.extend(embeds, mask, self._cache)
            self.positions = mask.shape[1]
            tokens = self._choose(model.backbone.head(hidden[:, -1]))
            self._unfed = [int(tokens)]
            self._is_torn = False
            if self._unfed == [stop]:
                break
            if piece := pieces.add(int(tokens)):
                yield piece
            embeds = model.backbone.embed(tokens[:, None])
        if rest := pieces.rest():
            yield rest

    def _turn(self, content: Content) -> Layout:
        """What follows what the cache holds: the end of the last answer, the user's turn, the beginning of the next."""
        if not any(value for _, value in content):
            raise ValueError("the message is empty; write something, or give a medium")
        if self._is_torn:
            raise ValueError("the conversation was broken off within a token, and is of no use; reset it")
        turns = (Turn("user", tuple(content)), Turn("assistant", ()))
        if self.positions:  # behind an answer, for what the chat format puts there; what it said is in the cache
            turns = (Turn("assistant", ()), *turns)
        sample = Sample("the message", turns)
        whole = self.run.layouter(sample, answer=False)
        layout = self._behind(whole)
        room = self.run.room(self.max_tokens)
        if room is None or self.positions + len(layout.ids) <= room:
            return layout
        try:
            room += len(whole.ids) - len(layout.ids) - self.positions  # what is laid out and then left out
            return self._behind(self.run.layouter(sample, answer=False, room=room))
        except TooLong as error:
            raise self.run.too_long("the conversation with this message", self.max_tokens) from error

    def _behind(self, layout: Layout) -> Layout:
        """The layout without what the cache holds already, and with what was said and is not in it."""
        if not self.positions:
            return layout
        stop = self.run.layouter.stop
        end = max(at for at, is_learned in enumerate(layout.learned) if is_learned) + 1
        said = self._unfed if self._unfed == [stop] else [*self._unfed, stop]
        places = tuple(place._replace(start=place.start - end + len(said)) for place in layout.places)
        ids = [*said, *layout.ids[end:]]
        return layout._replace(ids=ids, learned=[False] * len(ids), places=places)


class _Pieces:
    """Tokens to text, piece by piece: never a part of a character."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode, self.ids, self.told = decode, list[int](), ""

    def add(self, token: int) -> str:
        """The further text that the tokens with this one mean, as far as it is whole."""
        self.ids.append(token)
        text = self.decode(self.ids)
        return "" if text.endswith(UNFINISHED) else self._further(text)

    def rest(self) -> str:
        """What has not been told."""
        return self._further(self.decode(self.ids))

    def _further(self, text: str) -> str:
        piece, self.told = text[len(self.told) :], text
        return piece
