"""A recipe made small enough to be tried in minutes, and still the user's own: its parts, rules, stages and data."""

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import SerializeAsAny

from omnikit.component import Records, Sample, SourceConfig
from omnikit.recipe import Recipe, Stage

PACKS = 4
"""Packs of a step: as few as can be split into ranks, micro-batches and both."""
LENGTH = 1024
"""Positions of a pack at most, where components are tiny: the media of tiny encoders take few."""
RECORDS = 256
"""Records of a source at most. Each has to be looked at once, since tiny components lay it out another way."""


class Excerpt(SourceConfig):
    """Some records of another source, evenly spaced."""

    type: ClassVar[str] = "excerpt"
    of: SerializeAsAny[SourceConfig]

    def missing(self) -> str | None:
        """What the whole source lacks."""
        return self.of.missing()

    def fingerprint(self) -> str:
        """That of the whole source."""
        return self.of.fingerprint()

    def open(self) -> Sequence[Sample]:
        """The chosen samples."""
        return _Chosen(self.of.open())


class _Chosen(Records):
    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        stride = max(1, math.ceil(len(samples) / RECORDS))
        self.numbers = range(0, len(samples), stride)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Sample:  # type: ignore[override]  (no slices: nobody takes any)
        return self.samples[self.numbers[number]]

    def described(self) -> str:
        """How many of how many."""
        return f"{len(self.numbers):,} of {len(self.samples):,} records"


def shrunk(recipe: Recipe, stages: Sequence[str], steps: int, full: bool) -> Recipe:
    """The recipe with these stages, of so many steps each, and some records of every source; nothing is held out.

    Unless `full`, every component is what its `tiny()` says, with random weights, and packs are shorter. Checkpoints
    come so that one of them, with the optimizer's state, lies between the place where a run is cut and its end. Nothing
    is compiled or tracked, and no run of it skips a step.
    """
    tiny: dict[str, object] = {}
    if not full:
        tiny = {
            "backbone": recipe.backbone.tiny(),
            "encoders": {name: encoder.tiny() for name, encoder in recipe.encoders.items()},
            "modalities": {
                name: modality.model_copy(
                    update={"reader": modality.reader.tiny(), "projector": modality.projector.tiny()}
                )
                for name, modality in recipe.modalities.items()
            },
        }
    chosen = {name: _shorter(recipe.stages[name], steps, full) for name in stages}
    used = {source for stage in chosen.values() for source in stage.data}
    settings = {"save": max(1, (steps - 1) // 2), "keep": 2, "shard": None, "compile": False, "on_nonfinite": "stop"}
    settings |= {"tracker": None, "eval": None}
    return recipe.model_copy(
        update={
            **tiny,
            "stages": chosen,
            "data": {
                name: Excerpt(of=source, modalities=source.modalities, max_bad=source.max_bad)
                for name, source in recipe.data.items()
                if name in used
            },
            "heldout": {},
            "run": recipe.run.model_copy(update=settings),
        }
    )


def _shorter(stage: Stage, steps: int, full: bool) -> Stage:
    batch = {"packs": PACKS, "micro": math.gcd(stage.batch.micro, PACKS)}
    if not full:
        batch |= {"length": min(stage.batch.length, LENGTH), "cut": True}
    return stage.model_copy(
        update={"steps": steps, "epochs": None, "batch": stage.batch.model_copy(update=batch)},
    )
