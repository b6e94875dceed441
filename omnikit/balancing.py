"""Which rank computes which packs of a step.

What a step consists of is the plan's business and the same for any number of ranks (`omnikit.data`); free is who
computes what of it. Ranks meet at every micro-batch, where sharded weights are gathered, and all wait for the slowest.
So it is not enough that each has as much to do in a step: each must, slot by slot.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import fmean

from omnikit.recipe import Recipe, recomputes, trains_within

Assignment = list[list[list[int]]]
"""[slot][rank]: numbers of the packs in the rank's micro-batch. One of none is all padding: every rank takes part."""

CACHED, FORWARD, THROUGH, TRAINED = 0.0, 1.0, 2.0, 3.0
"""Forward passes that a part costs in a step. The gradients of what goes in cost one more, those of the weights another
(a backward pass is two forward passes, arXiv 2001.08361, section 2.1), and recomputing one again."""


def passes(recipe: Recipe, stage: str, cached: bool) -> dict[str, float]:
    """Forward passes that each component costs in a step of the stage, by its path; recomputing is not counted.

    A part of which anything trains counts as trained. What is frozen runs forward alone, or passes gradients through
    where something before it trains, as it always is with a backbone. Frozen encoders do not run at all where their
    features are `cached`.
    """
    trains = recipe.stages[stage].train
    found = {"backbone": TRAINED if trains_within(trains, "backbone") else THROUGH}
    for name, entry in recipe.modalities.items():
        encoder, projector = f"encoders.{entry.encoder}", f"modalities.{name}.projector"
        moves = trains_within(trains, encoder)
        found[encoder] = TRAINED if moves else CACHED if cached else FORWARD
        found[projector] = TRAINED if trains_within(trains, projector) else THROUGH if moves else FORWARD
    return found


def costing(recipe: Recipe, stage: str, cached: bool | None = None) -> Callable[[str, int, float], float]:
    """cost(source, length, media): FLOPs that a sample of a source takes in a step of the stage.

    `length` is its tokens, `media` what one forward pass of its media through their encoders costs (`Index.cost`).
    Features are `cached` where the stage says so, unless told otherwise. Projectors and the head are left out. The
    encoders of a source that holds several kinds of media count with the mean of what they cost, for the index keeps
    one number for all media of a record.
    """
    used = recipe.stages[stage]
    number = passes(recipe, stage, used.cache if cached is None else cached)
    number = {path: count + (recomputes(recipe, path) and count > FORWARD) for path, count in number.items()}
    through = number["backbone"]
    towers = {name: number[f"encoders.{entry.encoder}"] for name, entry in recipe.modalities.items()}
    weights = {
        source: fmean([towers[use.as_.get(name, name)] for name in recipe.data[source].modalities] or [FORWARD])
        for source, use in used.data.items()
    }

    @cache
    def tokens(length: int) -> float:
        return through * recipe.backbone.cost(length, 0)

    return lambda source, length, media: tokens(length) + weights[source] * media


def in_order(packs: int, ranks: int, micro: int) -> Assignment:
    """The packs of a step as they come: the first `micro` of them to the first rank, the next to the second."""
    batches = [list(range(begin, min(begin + micro, packs))) for begin in range(0, packs, micro)]
    batches += [[] for _ in range(-len(batches) % ranks)]
    return [batches[begin : begin + ranks] for begin in range(0, len(batches), ranks)]


def dealt(costs: Sequence[float], ranks: int, micro: int) -> Assignment:
    """The packs of a step, which cost so much, so that in each slot the ranks have as much to do as one another.

    Micro-batches are filled alike, the costliest pack first, each into the cheapest one that has room (Graham's rule,
    doi 10.1137/0117039); then those that cost most share the first slot, and so on. Without accumulation within a
    micro-batch (`micro` 1) no assignment has less idle time, and with it none of them is worse than the plan's own
    order, which is taken where it happens to be better.

    All ranks have equally many packs where their number is a multiple of ranks * micro; else some have fewer.
    """
    slots = math.ceil(len(costs) / (ranks * micro))
    room: list[tuple[float, int, list[int]]] = [(0.0, which, []) for which in range(slots * ranks)]
    full = []
    for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        load, which, batch = heapq.heappop(room)
        batch.append(number)
        filled = (load + costs[number], which, batch)
        if len(batch) < micro:
            heapq.heappush(room, filled)
        else:
            full.append(filled)
    batches = [batch for _, _, batch in sorted((*full, *room), key=lambda filled: (-filled[0], filled[1]))]
    alike = [batches[begin : begin + ranks] for begin in range(0, len(batches), ranks)]
    return min(alike, in_order(len(costs), ranks, micro), key=lambda found: idle_share(costs, found))


def idle_share(costs: Sequence[float], assignment: Assignment) -> float:
    """The share of all ranks' time in which they wait for the slowest of their slot; 0 where nothing costs anything."""
    loads = [[sum(costs[number] for number in batch) for batch in slot] for slot in assignment]
    spent = sum(len(slot) * max(slot) for slot in loads)
    return 1 - sum(map(sum, loads)) / spent if spent else 0.0


def uneven_places(packs: int, ranks: int, micro: int) -> str | None:
    """What is to be said where a step's packs do not fill every slot of every rank: the rest is padding."""
    together = ranks * micro
    idle = 1 - packs / (-(-packs // together) * together)
    if not idle:
        return None
    return f"{packs} packs a step are no multiple of {ranks} ranks times micro {micro}: {idle:.0%} is padding"
