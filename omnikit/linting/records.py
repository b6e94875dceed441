"""What is to be known of one record: its turns, its media, its tokens, and everything that is wrong with it."""

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from omnikit.component import EncoderConfig, Grid, Input, Item, Medium, ReaderConfig, Sample, Turn
from omnikit.media import MediaError
from omnikit.reading import Reading
from omnikit.sample import Branch, Layout, Layouter

Renames = tuple[tuple[str, str], ...]
"""A stage's `as` of a source, in order: (("image", "video"),)."""


class Fit(NamedTuple):
    """How samples come into packs: under which of the renames (by number), in how much room, cut or not."""

    renames: int
    room: int
    cut: bool


REMEMBERED = 2**16
"""Surveys of media that are kept: the sources of a recipe often share their media, one after another."""


class Fault(NamedTuple):
    """One thing that is wrong with a record: a kind of `omnikit.linting.KINDS`, and a line."""

    kind: str
    message: str


FATES = ("shrunk", "cut", "dropped")


class Fitted(NamedTuple):
    """What of a sample comes into a pack, and what became of one that has more than that: a word of FATES."""

    tokens: int
    cost: float
    """FLOPs of its media's forward passes through their encoders."""
    fate: str = ""


class Facts(NamedTuple):
    """What was found out about one sample."""

    record: int
    id: str
    digest: bytes
    """16 bytes; equal when turns and media are."""
    roles: Counter[str]
    media: Counter[str]
    """Media by the sample's own names of their modalities."""
    broken: Counter[str]
    lengths: tuple[int, ...]
    """Tokens under each of the renames, media at their largest; 0 where it cannot be laid out."""
    fitted: tuple["Fitted", ...]
    """Of each fit."""
    faults: tuple[Fault, ...]


class Remembering(Reading):
    """The reading of one branch that looks into a medium's header once, whatever sample it comes with."""

    known: dict[bytes, list[Grid] | str]
    lock: threading.Lock

    @classmethod
    def of(cls, reading: Reading) -> "Remembering":
        """Like `reading`, with nothing remembered yet."""
        made = cls(*reading)
        made.known, made.lock = {}, threading.Lock()
        return made

    def grids(self, reader: ReaderConfig, medium: Medium, input: Input) -> list[Grid]:
        """The grids that the reader can give for this medium, largest first."""
        key = key_of(medium)
        with self.lock:
            found = self.known.get(key)
        if found is None:
            try:
                found = super().grids(reader, medium, input)
            except MediaError as error:
                found = str(error)
            with self.lock:
                if len(self.known) >= REMEMBERED:
                    del self.known[next(iter(self.known))]
                self.known[key] = found
        if isinstance(found, str):
            raise MediaError(found)
        return found


class Examiner:
    """Finds out about the samples of one source, which passes under these renames, fits so into the packs of its
    stages, and declares these modalities; `encoders` are those of the recipe's modalities. Media are surveyed by their
    headers, or with `decode` also read.
    """

    def __init__(
        self,
        layouter: Layouter,
        encoders: Mapping[str, EncoderConfig],
        renames: Sequence[Renames],
        fits: Sequence[Fit],
        declared: Collection[str],
        decode: bool = False,
    ) -> None:
        self.layouter, self.encoders = layouter, encoders
        self.fits, self.declared, self.decode = fits, declared, decode
        self.renames = [dict(one) for one in renames]

    def __call__(self, record: int, sample: Sample) -> Facts:
        """What there is to know of a sample; nothing about it is an error."""
        media = [(name, value) for turn in sample.turns for name, value in turn.content if isinstance(value, Medium)]
        faults = [*_faults_of_turns(sample.turns)]
        broken: dict[int, Fault] = {}
        contents: dict[int, bytes] = {}
        layouts: list[Layout | None] = []
        for renames in self.renames:
            layout, found = self._laid_out(sample, media, renames, broken)
            if layout is not None and self.decode and not self._read(layout, broken, contents):
                layout = None
            layouts.append(layout)
            faults.extend(found)
        faults.extend(broken.values())
        return Facts(
            record=record,
            id=sample.id,
            digest=_digest(sample.turns, contents),
            roles=Counter(turn.role for turn in sample.turns),
            media=Counter(name for name, _ in media),
            broken=Counter(media[number][0] for number in broken),
            lengths=tuple(len(layout.ids) if layout else 0 for layout in layouts),
            fitted=tuple(self._fitted(sample, fit, layouts[fit.renames]) for fit in self.fits),
            faults=tuple(Fault(kind, f"sample {sample.id}: {told}") for kind, told in dict.fromkeys(faults)),
        )

    def _laid_out(
        self, sample: Sample, media: list[tuple[str, Medium]], renames: Mapping[str, str], broken: dict[int, Fault]
    ) -> tuple[Layout | None, list[Fault]]:
        """The layout, or what prevents it; media that cannot be surveyed are added to `broken` by their number."""
        faults = []
        for number, (name, medium) in enumerate(media):
            branch = self.layouter.branches.get(renames.get(name, name))
            if branch is None or name not in self.declared:
                faults.append(Fault("unknown_modality", self._unknown(name, renames)))
            elif number not in broken and (told := _why_not(branch, medium)):
                broken[number] = Fault("broken_medium", f"{name}: {told}")
        if not sample.turns:
            faults.append(Fault("no_layout", "has no turns; give it a question and an answer"))
        if faults or broken:
            return None, faults
        try:
            layout = self.layouter(sample, renames)
        except Exception as error:  # also what a plugin's projector raises: one sample must not end the lint
            return None, [Fault("no_layout", _told(error).removeprefix(f"sample {sample.id}: "))]
        # The first position has nothing before it to be predicted from.
        if not any(layout.learned[1:]):
            text = "has no token that is learned; give it an assistant turn with text"
            return layout, [Fault("nothing_learned", text)]
        return layout, []

    def _fitted(self, sample: Sample, fit: Fit, layout: Layout | None) -> Fitted:
        if layout is None:
            return Fitted(0, 0.0)
        fate = ""
        try:
            if len(layout.ids) > fit.room:
                layout = self.layouter(sample, self.renames[fit.renames], room=fit.room, cut=fit.cut)
                fate = "cut" if layout.cut else "shrunk"
            cost = sum(self.encoders[place.modality].cost(place.grid) for place in layout.places)
        except Exception:  # TooLong, or a plugin that fails on a smaller grid
            return Fitted(0, 0.0, "dropped")
        return Fitted(len(layout.ids), cost, fate)

    def _unknown(self, name: str, renames: Mapping[str, str]) -> str:
        if name not in self.declared:
            known = ", ".join(self.declared) or "none"
            return f"holds {name}, which is not among the source's modalities ({known}); add it to `modalities`"
        known = ", ".join(self.layouter.branches) or "none"
        return f"the recipe has no modality {renames.get(name, name)!r} (it has {known}); add it, or rename with `as`"

    def _read(self, layout: Layout, broken: dict[int, Fault], contents: dict[int, bytes]) -> bool:
        """Whether all media of a layout can be read; what they hold is added to `contents`, by number."""
        good = True
        for number, place in enumerate(layout.places):
            branch = self.layouter.branches[place.modality]
            try:
                item = branch.reading.read(branch.reader, place.medium, branch.input, place.grid)
                if item.grid != place.grid:
                    raise MediaError(
                        f"{place.medium}: reader {type(branch.reader).type} was asked for grid {place.grid} and gave "
                        f"{item.grid}; it must give exactly what it was asked for"
                    )
                contents.setdefault(number, _content(item))
            except MediaError as error:
                broken.setdefault(number, Fault("broken_medium", f"{place.modality}: {_told(error)}"))
                good = False
        return good


def _why_not(branch: Branch, medium: Medium) -> str | None:
    try:
        grids = branch.reading.grids(branch.reader, medium, branch.input)
    except MediaError as error:  # no other: that no worker can be started is not the medium's fault
        return str(error)
    try:
        branch.projector.shrink(grids[0])
    except Exception as error:  # whatever a plugin raises
        return _told(error)
    return None


def _told(error: Exception) -> str:
    reason = " ".join(str(error).split()) or "it does not say why"
    return reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"


def _faults_of_turns(turns: Sequence[Turn]) -> Iterator[Fault]:
    """Empty answers and roles out of order. An order that a chat template would refuse is one; so is the order of two
    answers without a question between them.
    """
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not any(name == "text" and str(value).strip() for name, value in turn.content):
            yield Fault(
                "empty_answer", f"turn {number}: the assistant's answer is empty; write it or remove the record"
            )
        if turn.role == "system" and number > 1:
            yield Fault("role_order", f"turn {number}: the system turn is not the first; put it first")
        if number > 1 and turn.role == turns[number - 2].role != "system":
            text = f"turn {number}: two {turn.role} turns in a row; join them, or add the turn that is missing between"
            yield Fault("role_order", text)
    spoken = [turn.role for turn in turns if turn.role != "system"]
    if spoken and spoken[0] == "assistant":
        yield Fault("role_order", "the assistant speaks first; put the user's turn before it")
    if spoken and spoken[-1] == "user":
        yield Fault("role_order", "ends with a user turn, which nothing is learned from; add the answer")


# -------------------------------------------------------------------------------------------------------------- hashes


def key_of(medium: Medium) -> bytes:
    """16 bytes of a medium: of its path as it is written or of its bytes, and of the part of it that is meant."""
    source = medium.source if isinstance(medium.source, bytes) else os.path.normpath(medium.source)
    kind = type(source).__name__
    return _hash(repr((kind, *medium[1:])).encode(), source if isinstance(source, bytes) else _bytes(source))


def _digest(turns: Sequence[Turn], contents: Mapping[int, bytes]) -> bytes:
    """16 bytes of all turns; of media what was decoded, if it was."""
    parts, number = [], 0
    for turn in turns:
        parts += [b"turn", _bytes(turn.role)]
        for name, value in turn.content:
            if isinstance(value, Medium):
                parts += [_bytes(name), contents.get(number) or key_of(value)]
                number += 1
            else:
                parts += [b"text", _bytes(value)]
    return _hash(*parts)


def _content(item: Item) -> bytes:
    """16 bytes of what was decoded."""
    return _hash(repr((item.grid, str(item.value.dtype))).encode(), item.value.reshape(-1).view("u1").data)


def _hash(*parts: bytes | memoryview) -> bytes:
    """16 bytes of all parts, each with its length, so that no two lists of parts read alike."""
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(len(part).to_bytes(8, "big"))
        whole.update(part)
    return whole.digest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def hashed(text: str) -> bytes:
    """16 bytes of a text."""
    return _hash(_bytes(text))
