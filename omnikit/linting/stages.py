"""What a stage would see of its sources, and how full its packs would be: its own mixture over the first samples."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from omnikit.balancing import Assignment, costing, dealt, idle_share, in_order
from omnikit.mixing import mixture_of, seed_of
from omnikit.packing import pack
from omnikit.recipe import Recipe, Stage

SAMPLES = 4096
"""Samples of a stage that are looked at, rounded up to whole windows of its plan."""
PADDED = 8
"""Samples in the padded batches that packing is compared with."""
RANKS = (2, 4, 8)
"""Numbers of ranks whose idle time is told."""


class Sizes:
    """What a source's samples take in a stage: tokens in its packs, and FLOPs of their media's forward passes.

    Under a limit those that were looked at stand for their neighbours.
    """

    def __init__(self, tokens: Sequence[int], costs: Sequence[float], records: int) -> None:
        looked_at = np.array(tokens, np.uint32)
        self.tokens, self.costs = looked_at[looked_at > 0], np.array(costs, np.float32)[looked_at > 0]
        self.samples = round(len(self.tokens) * records / max(1, len(looked_at)))
        """How many usable samples there are, or would be."""

    def at(self, place: int) -> tuple[int, float]:
        """The tokens of the usable sample number `place`, and what its media cost."""
        known = place * len(self.tokens) // self.samples
        return int(self.tokens[known]), float(self.costs[known])


def evenly(total: int, limit: int | None) -> Sequence[int]:
    """At most `limit` of so many indices, the first among them, in equal distances."""
    if limit is None or limit >= total:
        return range(total)
    return [number * total // limit for number in range(limit)]


def stage_table(recipe: Recipe, name: str, sizes: Mapping[str, Sizes]) -> dict[str, Any]:
    """What the stage sees in its first samples.

    Efficiencies are the share of positions that hold a token: of packs as the stage fills them, and of batches of
    PADDED samples in the stage's order, each padded to its longest.
    """
    stage = recipe.stages[name]
    capacity = stage.batch.length
    usable = {key: known.samples for key, known in sizes.items()}
    means = {key: float(known.tokens.mean()) for key, known in sizes.items()}
    shares = {key: float(usable[key] if stage.epochs else stage.data[key].share) for key in usable}
    seed, cost = seed_of(recipe.run.seed, name), costing(recipe, name)
    mixture = mixture_of(stage, usable, means, seed)
    end = min(math.ceil(SAMPLES / mixture.window) * mixture.window, mixture.samples or sys.maxsize)
    samples, tokens = dict.fromkeys(stage.data, 0), dict.fromkeys(stage.data, 0)
    costs: list[float] = []
    seen: list[int] = []
    for window in range(math.ceil(end / mixture.window)):
        start, own = len(seen), list[float]()
        for key, place in mixture.of_window(window):
            length, media = sizes[key].at(place)
            seen.append(length)
            own.append(cost(key, length, media))
            samples[key] += 1
            tokens[key] += length
        found = pack(seen[start:], capacity)
        order = np.random.default_rng([seed, window]).permutation(len(found))  # that of `StageData.plan`
        costs += [sum(own[number] for number in found[which]) for which in order]
    packs = len(costs)
    batches = np.array(seen[: end // PADDED * PADDED]).reshape(-1, PADDED)
    total, whole = sum(tokens.values()), sum(usable.values()) * (stage.epochs or 0)
    steps = stage.steps or math.ceil(packs * whole / end / stage.batch.packs)
    passed = steps * stage.batch.packs * end / packs
    return {
        "length": capacity,
        "steps": steps,
        "samples": end,
        "packed": _share(total, packs * capacity),
        "padded": _share(int(batches.sum()), PADDED * int(batches.max(1, initial=0).sum())),
        "idle": {str(ranks): _idle(costs, stage, ranks) for ranks in RANKS},
        "mix": stage.mix,
        "mixture": {
            key: {
                "target": _share(shares[key], sum(shares.values())),
                "samples": _share(samples[key], end),
                "tokens": _share(tokens[key], total),
                "epochs": stage.epochs or round(passed * samples[key] / end / usable[key], 4),
            }
            for key in stage.data
        },
    }


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0


def _idle(costs: Sequence[float], stage: Stage, ranks: int) -> dict[str, float] | None:
    """The idle shares of so many ranks over whole steps of packs that cost so much, in the plan's order and dealt."""
    size = stage.batch.packs
    begins = range(0, len(costs) // size * size, size)
    if size % ranks or not begins:
        return None
    micro = math.gcd(stage.batch.micro, size // ranks)  # no rank has fewer packs than it computes at a time

    def share(deal: Callable[[Sequence[float]], Assignment]) -> float:
        slots = [
            [[begin + number for number in batch] for batch in slot]
            for begin in begins
            for slot in deal(costs[begin : begin + size])
        ]
        return round(idle_share(costs, slots), 4)

    return {
        "plan": share(lambda own: in_order(len(own), ranks, micro)),
        "dealt": share(lambda own: dealt(own, ranks, micro)),
    }
