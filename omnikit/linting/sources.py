"""What one source holds, counted sample by sample; then compared with itself, its stages and other sources."""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from omnikit.component import NothingToLearn, Sample, SourceConfig
from omnikit.linting.records import FATES, Facts, Fit, Renames, hashed

KINDS: Mapping[str, tuple[str, str]] = {
    "no_usable_record": ("error", "sources without a usable record"),
    "unparsable": ("error", "records that do not parse"),
    "broken_medium": ("error", "broken media"),
    "unknown_modality": ("error", "media of unknown modalities"),
    "no_layout": ("error", "samples that cannot be laid out"),
    "empty_answer": ("error", "answers that are empty or missing"),
    "contamination": ("warning", "held-out samples that are trained on"),
    "duplicate": ("warning", "samples that occur twice in a source"),
    "duplicate_id": ("warning", "ids that occur twice in a source"),
    "role_order": ("warning", "roles out of order"),
    "nothing_learned": ("warning", "samples without a learned token"),
    "too_long": ("warning", "sources with samples longer than a pack"),
    "unused_modality": ("warning", "modalities declared and never used"),
}
"""Kinds of findings, in the order of a report: severity, and what to call them."""


class Finding(NamedTuple):
    """One thing that is wrong: `record` is an index into the source, `message` says where, what, and what is right."""

    kind: str
    source: str
    record: int | None
    sample: str | None
    message: str


class Use(NamedTuple):
    """A source of the recipe, and how its samples pass: of each stage the number of its fit."""

    config: SourceConfig
    renames: list[Renames]
    fits: list[Fit]
    stages: dict[str, int]


class Tally:
    """What one source holds, of which `records` are there and `looked` are looked at."""

    def __init__(self, path: str, use: Use) -> None:
        self.path, self.use = path, use
        self.source: Sequence[Sample] = ()
        self.described: str | None = None
        self.records = self.looked = 0
        self.turns, self.media, self.broken = Counter[str](), Counter[str](), Counter[str]()
        self.lengths = [array("I") for _ in use.renames]
        self.fitted = [array("I") for _ in use.fits]
        self.costs = [array("f") for _ in use.fits]
        self.fates = [Counter[str]() for _ in use.fits]
        self.indices, self.digests, self.ids = array("Q"), bytearray(), bytearray()
        self.findings: list[Finding] = []

    def find(self, kind: str, message: str, record: int | None = None, sample: str | None = None) -> None:
        """Note a finding, in one line whatever there is in names."""
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        self.findings.append(Finding(kind, self.path, record, sample, f"{self.path}: {line}"))

    def add(self, facts: Facts) -> None:
        """Count a sample in."""
        self.looked += 1
        self.indices.append(facts.record)
        self.digests += facts.digest
        self.ids += hashed(facts.id)
        self.turns += facts.roles
        self.media += facts.media
        self.broken += facts.broken
        for kept, length in zip(self.lengths, facts.lengths, strict=True):
            kept.append(length)
        for number, (tokens, cost, fate) in enumerate(facts.fitted):
            self.fitted[number].append(tokens)
            self.costs[number].append(cost)
            self.fates[number][fate] += 1
        for fault in facts.faults:
            self.find(fault.kind, fault.message, facts.record, facts.id)

    def add_unparsable(self, index: int, error: Exception) -> None:
        """Count in a record that is no sample, or one that its source refuses since there is nothing to learn in it."""
        self.looked += 1
        told = " ".join(str(error).split())
        if not isinstance(error, ValueError):
            told = f"record {index}: cannot be read ({type(error).__name__}: {told}); mend the record or the source"
        self.find("empty_answer" if isinstance(error, NothingToLearn) else "unparsable", told, index)
        for kept in (*self.lengths, *self.fitted, *self.costs):
            kept.append(0)

    @property
    def usable(self) -> int:
        """How many samples can be laid out, however the stages rename their media."""
        return sum(map(all, zip(*self.lengths, strict=True)))

    def repeated(self) -> None:
        """Find samples and ids that occurred before in this source."""
        for index, first in _repeats(self.digests):
            at, id = self._at(index)
            _, other = self._at(first)
            self.find("duplicate", f"sample {id}: has the turns and media of sample {other}; remove one", at, id)
        for index, first in _repeats(self.ids):
            at, id = self._at(index)
            text = f"sample {id}: record {self.indices[first]} has this id too; give each its own"
            self.find("duplicate_id", text, at, id)

    def contaminated(self, trained: "Tally") -> None:
        """Find samples that also occur in a source that is trained on."""
        own, others = _as_rows(self.digests), _as_rows(trained.digests)
        if not len(others):
            return
        order = np.argsort(others, kind="stable")
        place = np.minimum(np.searchsorted(others, own, sorter=order), len(others) - 1)
        for index in np.flatnonzero(others[order[place]] == own):
            (at, id), (_, other) = self._at(int(index)), trained._at(int(order[place[index]]))
            text = f"sample {id}: is sample {other} of {trained.path}, which is trained on; remove it from one of them"
            self.find("contamination", text, at, id)

    def unused(self) -> None:
        """Find modalities that the source declares and no sample holds."""
        for name in self.use.config.modalities:
            if self.indices and not self.media[name]:
                text = f"modalities: none of {self.looked} samples holds {name}; remove it, or look for what is missing"
                self.find("unused_modality", text)

    def too_long(self) -> None:
        """Find stages in whose packs some samples have no room."""
        for stage, which in self.use.stages.items():
            fit, fates = self.use.fits[which], self.over(stage)
            if any(fates.values()):
                told = ", ".join(f"{count} {fate}" for fate, count in fates.items())
                text = f"{sum(fates.values())} of {self.looked} samples have more than the {fit.room} tokens of a pack"
                text += f" of stage {stage}, the longest {max(self.lengths[fit.renames])} ({told}); raise "
                self.find("too_long", text + f"stages.{stage}.batch.length, or let readers give less")

    def over(self, stage: str) -> dict[str, int]:
        """How many samples were too long for the stage's packs, by what becomes of them."""
        return {fate: self.fates[self.use.stages[stage]][fate] for fate in FATES}

    def _at(self, row: int) -> tuple[int, str]:
        """(index, id) of a sample by its row among those that parse."""
        index = self.indices[row]
        try:
            return index, str(self.source[index].id)
        except Exception:  # it parsed before: somebody is changing the data meanwhile
            return index, f"of record {index}"


def _as_rows(hashes: bytearray) -> np.ndarray:
    """The hashes one by one. (numpy compares such strings without their trailing zeros: equal length, same answer.)"""
    return np.frombuffer(bytes(hashes), "S16")


def _repeats(hashes: bytearray) -> Iterator[tuple[int, int]]:
    """(row, first row with the same hash) of every later one, in order."""
    rows = _as_rows(hashes)
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    firsts = order[np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))]
    later = ~is_first
    yield from sorted(zip(order[later].tolist(), firsts[later].tolist(), strict=True))
