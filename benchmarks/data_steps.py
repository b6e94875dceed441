"""Steps of the tiny recipe, timed by training it: what a planner and kept features are measured against."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from omnikit.recipe import Recipe
from omnikit.train import Display, train

WARM = 3
"""Steps of a stage that are left out: the first make the optimizer's state and fill caches."""
KEPT = 2.5
"""How many times as fast steps with kept features should be, where the tower is of a real size (decision 0013)."""
BASE = "encoders.vision={type: siglip, preset: base-patch16-256}"

Line = tuple[str, str, str, bool | None]


class Timing(Display):
    """A display that keeps how long each stage's steps took, without what they waited for data."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def step(self, record: Mapping[str, Any]) -> None:
        self.seconds.setdefault(record["stage"], []).append(record["seconds"])


def timed(recipe: Recipe, folder: Path) -> dict[str, float]:
    """The median seconds of a step, of each stage."""
    timing = Timing()
    train(recipe, folder, timing)
    return {name: median(seconds[WARM:]) for name, seconds in timing.seconds.items()}


def kept(tiny: Callable[..., Recipe], folder: Path, rounds: int) -> Iterator[Line]:
    """Steps of the stage `image_caption` with live and with kept features, in turn: as it is, and with a real tower."""
    others = [f"stages.{name}=null" for name in tiny().stages if name != "image_caption"]
    base = [BASE, "stages.image_caption.batch={length: 512, packs: 1, micro: 1}", "stages.image_caption.steps=8"]
    for tower, sets, wanted in (("the tiny tower", [], None), ("SigLIP base, 1 pack a step", base, KEPT)):
        found: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            for is_kept, own in found.items():
                recipe = tiny(*others, *sets, f"stages.image_caption.cache={str(is_kept).lower()}")
                own.append(timed(recipe, Path(tempfile.mkdtemp(dir=folder)))["image_caption"])
        live, cached = (median(found[is_kept]) for is_kept in (False, True))
        told = f"{1000 * live:.0f} ms live, {1000 * cached:.0f} ms kept: {live / cached:.2f} times as fast"
        verdict = None if wanted is None else live / cached >= wanted
        yield f"steps of image_caption, {tower}", told, f"{wanted or ''}", verdict
