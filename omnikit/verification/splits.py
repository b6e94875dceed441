"""Laws of how a step is split: into ranks, micro-batches and their order. Two ranks are processes of their own."""

import time
import uuid
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch

from omnikit.component import Item
from omnikit.data import Entry, Step
from omnikit.sample import BadSample
from omnikit.testing.processes import ask_ranks
from omnikit.testing.results import Fault
from omnikit.verification.batches import batch_of, fitting, summed
from omnikit.verification.observing import apart
from omnikit.verification.ranks import HANGING, lacking, ready, taken_by_rank
from omnikit.verification.results import Finding, absent, close, largest, none_of
from omnikit.verification.taking import Taken, taken
from omnikit.verification.trial import Trial

RANKS = (1, 2, 4)
LOOKED_AT = 512
"""Samples among which those are looked for that hold a modality, or lack it."""
EACH = 2
"""Samples of every combination of modalities that are taken."""


def micro_batches_change_nothing(trial: Trial, stage: str) -> Finding:
    """A step comes to the same loss, labels and gradients by one pack at a time as by all at once."""
    packs = trial.recipe.stages[stage].batch.packs
    return _same(taken(trial.recipe, stage, trial.new_folder(), packs), trial.taken(stage), "all packs at once")


def ranks_change_nothing(trial: Trial, stage: str) -> Finding:
    """A step comes to the same loss, labels and gradients on two ranks, sharded, as on one."""
    arguments = (trial.recipe, stage, trial.new_folder(), uuid.uuid4().hex, trial.seconds)
    [two, _] = _asked(trial, stage, taken_by_rank, *arguments)
    return _same(two, trial.taken(stage), "two ranks")


def _same(found: Taken, one: Taken, how: str) -> Finding:
    if (found.labels, found.tokens) != (one.labels, one.tokens):
        told = f"{found.labels} labels in {found.tokens} tokens with {how}, {one.labels} in {one.tokens} without"
        return Finding(False, told, 1.0)
    pairs = {"the loss": (found.loss, one.loss), "the gradient's norm": (found.norm, one.norm)}
    shares = [(abs(two - first) / max(abs(first), 1e-12), what) for what, (two, first) in pairs.items()]
    difference, where = apart(found.tensors(), one.tensors())
    return close(*largest([*shares, (difference, f"gradient of {where}")]))


def ranks_may_lack_modalities(trial: Trial, stage: str) -> Finding:
    """Two ranks of which each lacks what the other holds, or all, do not hang, and give the gradients of one rank."""
    model = trial.model(stage)
    if not model.branches:
        return absent("its samples hold text alone")
    entries = _specimens(trial, stage, set(model.branches))
    slots = _slots(entries, list(model.branches))
    data, length = trial.data(stage), trial.recipe.stages[stage].batch.length
    batches = [batch_of([fitting(map(data.read, row), length)], length) for slot in slots for row in slot]
    loss, gradients = summed(model, batches)
    arguments = (trial.recipe, stage, trial.whole.run.path, slots, uuid.uuid4().hex)
    [(total, found), _] = _asked(trial, stage, lacking, *arguments)
    difference, where = apart({name: torch.from_numpy(array) for name, array in found.items()}, gradients)
    off = abs(total - loss) / max(abs(loss), 1e-12)
    held = ", ".join(model.branches)
    finding = close(*largest([(off, "the loss"), (difference, f"gradient of {where}")]))
    return finding._replace(told=f"{finding.told}; {2 * len(slots)} batches with and without {held}")


def the_plan_is_the_same_for_any_ranks(trial: Trial, stage: str) -> Finding:
    """Whatever the number of ranks, a step is the same samples, each computed once, in as many slots on every rank."""
    data = trial.data(stage)
    reading, data.branches = data.branches, {
        name: branch._replace(reading=_Unread()) for name, branch in data.branches.items()
    }  # fmt: skip
    try:
        steps = {ranks: [_first(data.steps(trial.start, rank, ranks)) for rank in range(ranks)] for ranks in RANKS}
    finally:
        data.branches = reading
    [alone] = steps[1]
    expected = sorted(zip(alone.at, alone.samples, strict=True))
    wrong = []
    for ranks, parts in steps.items():
        found = sorted(pair for part in parts for pair in zip(part.at, part.samples, strict=True))
        if found != expected:
            wrong.append(f"{ranks} ranks compute {len(found)} samples, one rank {len(expected)}, or others")
        if len({len(part.batches) for part in parts}) != 1:
            wrong.append(f"of {ranks} ranks some have more micro-batches than others, and wait for them for ever")
        if any((part.packs, part.after) != (alone.packs, alone.after) for part in parts):
            wrong.append(f"{ranks} ranks plan other packs than one")
    finding = none_of(wrong, 3 * len(RANKS), "comparisons")
    if finding.passed:
        return finding._replace(told=f"{len(expected)} samples of a step, with {', '.join(map(str, RANKS))} ranks")
    return finding


class _Unread:
    """In the stead of a Reading: a plan needs no medium to be decoded."""

    def read(self, reader: object, medium: object, input: object, grid: tuple[int, int, int]) -> Item:
        return Item(torch.empty(0), grid)


def _first(steps: Iterator[Step]) -> Step:
    try:
        return next(steps)
    finally:
        assert isinstance(steps, Generator)
        steps.close()


def _asked(trial: Trial, stage: str, function: Callable[..., object], *args: object) -> list[Any]:
    """What a function returns on each of two ranks, within the seconds that they have; where they hang, a Fault."""
    if trial.hung:
        raise Fault(f"not tried, since two ranks hung in stage {trial.hung}")
    ask_ranks(ready)
    began = time.monotonic()
    try:
        return ask_ranks(function, *args, seconds=trial.seconds)
    except Fault as fault:
        if time.monotonic() - began < HANGING * trial.seconds:
            raise
        trial.hung = stage
        raise Fault(f"two ranks hang: {fault}") from fault


def _specimens(trial: Trial, stage: str, modalities: set[str]) -> dict[frozenset[str], list[Entry]]:
    """Some good samples of every combination of modalities that the stage's first ones hold."""
    found: dict[frozenset[str], list[Entry]] = {}
    data, looked = trial.data(stage), 0
    for plan, _ in data.packs(trial.start):
        for entry in plan:
            looked += 1
            try:
                layout = data.layout(entry)
            except BadSample:
                continue
            group = found.setdefault(frozenset(place.modality for place in layout.places), [])
            if len(group) < EACH and not data.read(entry)[0].bad:
                group.append(entry)
        if looked >= LOOKED_AT or (modalities <= frozenset().union(*found) and looked >= LOOKED_AT // 4):
            break
    return found


def _slots(found: dict[frozenset[str], list[Entry]], modalities: list[str]) -> list[list[list[Entry]]]:
    """[slot][rank]: the samples of a rank's micro-batch; of none, a pack of padding."""
    slots: list[list[list[Entry]]] = []
    for number, modality in enumerate(modalities):
        holding = [entry for group, entries in found.items() if modality in group for entry in entries]
        lacking = [entry for group, entries in found.items() if modality not in group for entry in entries]
        slots.append([holding, lacking] if number % 2 == 0 else [lacking, holding])
    everything = [entry for entries in found.values() for entry in entries]
    return [*slots, [[], everything], [everything, []]]
