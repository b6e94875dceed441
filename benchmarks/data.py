"""The data engine measured: readers beside other libraries', index, plan, kept features, memory, balance over ranks.

    python benchmarks/data.py [--quick] [--data data/sample] [--only readers,index,plan,features,memory,balance]

Prints one table in Markdown: what was measured, the figures, what is wanted, and whether that is reached. Everything it
writes goes to a temporary folder. The sample data must be there: `omnikit data sample data/sample` makes it.
"""

import argparse
import functools
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from data_steps import kept, timed
from PIL import Image

from omnikit.balancing import costing, dealt, idle_share, in_order
from omnikit.data import Plan, Position, StageData, layouter_of
from omnikit.indexing import index_of
from omnikit.mixing import mixture_of
from omnikit.packing import pack
from omnikit.recipe import Recipe, load_recipe
from omnikit.recipe_schema import Stage
from omnikit.registry import Registry

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny_omni.yaml"
STEPS = 10
"""Steps of each stage of the tiny recipe that are trained, to know what they take."""
PADDED = 8
"""Samples in the padded batches that packing is compared with."""

Line = tuple[str, str, str, bool | None]
"""What was measured, the figures, what is wanted, and whether that is reached (None: nothing is)."""


class Memory:
    """The resident memory of this process as some count grows."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.held: list[float] = []

    def look(self, count: int) -> None:
        """Remember how much is held at this count."""
        self.counts.append(count)
        self.held.append(resident())

    @property
    def slope(self) -> float:
        """MB per 10,000, of a line through the second half: in the first one caches fill."""
        first = len(self.counts) // 2
        return 1e4 * float(np.polyfit(self.counts[first:], self.held[first:], 1)[0])

    def __str__(self) -> str:
        return f"{self.slope:+.2f} MB per 10,000; peak {max(self.held):.0f} MB, at first {self.held[0]:.0f}"


def resident() -> float:
    """MB of memory that this process has, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def tiny(registry: Registry, sample: Path, *sets: str) -> Recipe:
    """The tiny recipe, over the sample data of this folder."""
    names = load_recipe(RECIPE, registry).data
    moved = [f"data.{name}.path={sample / 'train' / Path(source.path).name}" for name, source in names.items()]
    return load_recipe(RECIPE, registry, [*moved, *sets])


def fresh_cache(folder: Path, name: str) -> None:
    """From here on indexes are made anew, in a folder of their own."""
    os.environ["OMNIKIT_CACHE"] = str(folder / f"cache-{name}")


# -------------------------------------------------------------------------------------------------------------- index


def indexes(registry: Registry, folder: Path, sample: Path, quick: bool) -> Iterator[Line]:
    """A large JSONL file indexed on one thread and on two, and opened again."""
    records, wanted = 200_000 if quick else 1_000_000, "under 1 MB per 10,000"
    path = folder / "synthetic.jsonl"
    words = load_recipe(RECIPE, registry).backbone.words
    chance = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(records):
            said = [words[at] for at in chance.integers(0, len(words), 6 + number % 40)]
            turns = [{"role": "user", "content": " ".join(said)}, {"role": "assistant", "content": " ".join(said[:5])}]
            file.write(json.dumps({"id": f"synthetic/{number}", "turns": turns}) + "\n")
    size = path.stat().st_size / 1e6
    recipe = tiny(registry, sample, f"data.text.path={path}")
    layouter = layouter_of(recipe)
    for threads in (1, 2):
        fresh_cache(folder, f"index-{threads}")
        run = recipe.run.model_copy(update={"workers": threads})  # media, of which there are none, by no worker
        apart = recipe.model_copy(update={"run": run})
        if threads == 1:
            began = time.perf_counter()
            found = len(recipe.data["text"].open())
            seconds = time.perf_counter() - began
            yield f"line index of {found:,} records, {size:.0f} MB", f"{seconds:.1f} s", "-", found == records
        memory = Memory()
        memory.look(0)
        began = time.perf_counter()
        texts = apart.data["text"].open()
        first = index_of(apart, "language", "text", texts, layouter, lambda _, done, total: memory.look(done))  # noqa: B023
        seconds = time.perf_counter() - began
        what = f"index of {records:,} records, {threads} thread{'s' * (threads > 1)}"
        minutes = f"{records / seconds:,.0f} records/s, {seconds:.0f} s"
        yield what, minutes, "a million within minutes", 1e6 * seconds / records < 600
        yield f"{what}: memory", str(memory), wanted, memory.slope < 1
    began = time.perf_counter()
    again = index_of(apart, "language", "text", texts, layouter, lambda *_: None)
    seconds = time.perf_counter() - began
    yield f"opening the index of {records:,} again", f"{seconds:.2f} s", "under 1 s", seconds < 1
    assert again.digest == first.digest


# --------------------------------------------------------------------------------------------------------------- plan


def padded(lengths: list[int]) -> float:
    """The share of positions that hold a token in batches of PADDED samples, each padded to its longest."""
    batches = np.array(lengths[: len(lengths) // PADDED * PADDED]).reshape(-1, PADDED)
    return float(batches.sum() / (PADDED * batches.max(1).sum()))


def plans(registry: Registry, folder: Path, sample: Path, quick: bool) -> Iterator[Line]:
    """How full the packs of every stage are and what planning costs; then log-normal lengths."""
    fresh_cache(folder, "plan")
    recipe = tiny(registry, sample)
    short = tiny(registry, sample, *(f"stages.{name}.steps={STEPS}" for name in recipe.stages))
    step_of = timed(short, folder / "short")
    layouter = layouter_of(recipe)
    planned = trained = 0.0
    for name, stage in recipe.stages.items():
        data = StageData(recipe, name, layouter)
        steps = min(data.steps_planned, 100 if quick else 10_000)
        began = time.process_time()
        taken: list[Plan] = [one for one, _ in itertools.islice(data.packs(Position()), steps * stage.batch.packs)]
        seconds = (time.process_time() - began) / steps
        lengths = [entry.length for one in taken for entry in one]
        order = itertools.chain.from_iterable(map(data.mixture.of_window, itertools.count()))
        order = itertools.islice(order, len(lengths))
        unpacked = [int(data.indexes[key].lengths[data.usable[key][place]]) for key, place in order]
        full = sum(lengths) / (len(taken) * stage.batch.length)
        told = f"{full:.1%}; padded by {PADDED}: {padded(unpacked):.1%}"
        yield f"stage {name}: padding efficiency", told, "at least 97 %", full >= 0.97
        share = seconds / step_of[name]
        planned, trained = planned + steps * seconds, trained + steps * step_of[name]
        told = f"{1000 * seconds:.2f} ms of CPU time a step, {share:.1%} of its {1000 * step_of[name]:.0f} ms"
        yield f"stage {name}: planner", told, "", None
    told = f"{planned:.1f} s of {trained:.0f} s, {planned / trained:.1%}"
    yield "all stages: planner", told, "under 2 %", planned / trained < 0.02
    for sigma in (0.5, 1.0, 1.5, 2.0):
        chance = np.random.default_rng(0)
        lengths = np.clip(chance.lognormal(5.5, sigma, 100_000), 8, 4096).astype(int).tolist()
        batch, data = {"length": 4096, "packs": 8}, {"a": {"share": 1.0}}
        stage = Stage.model_validate({"batch": batch, "data": data, "train": {"rest": 1e-3}, "steps": 1})
        mixture = mixture_of(stage, {"a": len(lengths)}, {"a": float(np.mean(lengths))}, 0)
        began, packs, seen = time.perf_counter(), 0, list[int]()
        for window in range(4 if quick else 16):
            own = [lengths[place] for _, place in mixture.of_window(window)]
            packs += len(pack(own, 4096))
            seen += own
        seconds = time.perf_counter() - began
        full = sum(seen) / (4096 * packs)
        told = f"{full:.1%}; padded by {PADDED}: {padded(seen):.1%}; {1000 * seconds / packs:.2f} ms a pack"
        yield f"log-normal lengths (5.5, {sigma}), T 4096", told, "at least 97 %", full >= 0.97


# ------------------------------------------------------------------------------------------------------------- memory


def memories(registry: Registry, folder: Path, sample: Path, quick: bool) -> Iterator[Line]:
    """A pass over a plan whose batches are read: text, and small pictures."""
    fresh_cache(folder, "memory")
    samples, pictures = 50_000 if quick else 1_000_000, 64
    shares = {"text": 0.9, "pictures": 0.1}
    chance = np.random.default_rng(0)
    for number in range(pictures):
        Image.fromarray(chance.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    for kind in ("text", "pictures"):
        with (folder / f"{kind}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(round(samples * shares[kind])):
                question = [{"text": f"what is {number} ?"}]
                if kind == "pictures":
                    question.append({"image": f"{number % pictures}.png"})
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "red circle"}]
                file.write(json.dumps({"id": f"{kind}/{number}", "turns": turns}) + "\n")
    recipe = tiny(
        registry,
        sample,
        f"data.text.path={folder / 'text.jsonl'}",
        f"data.image_figures.path={folder / 'pictures.jsonl'}",
        "stages.image_full.data={text: 9, image_figures: 1}",
        "stages.image_full.batch={length: 512, packs: 16, micro: 4}",
    )
    data = StageData(recipe, "image_full", layouter_of(recipe))
    memory, seen = Memory(), 0
    began = time.perf_counter()
    for step in data.steps(Position()):
        seen += len(step.samples)
        memory.look(seen)
        assert not any(sample.bad for sample in step.samples)
        if seen >= samples:
            break
    seconds = time.perf_counter() - began
    what = f"a pass over {seen:,} samples, read into batches"
    yield what, f"{memory}; {seen / seconds:,.0f} samples/s", "under 1 MB per 10,000", memory.slope < 1


# ------------------------------------------------------------------------------------------------------------ balance


def balances(registry: Registry, folder: Path, sample: Path, quick: bool) -> Iterator[Line]:
    """How long ranks of the stage `sft` would wait, in the plan's order and with packs dealt by cost."""
    fresh_cache(folder, "plan")  # as left there by `plans`
    recipe = tiny(registry, sample)
    data, cost = StageData(recipe, "sft", layouter_of(recipe)), costing(recipe, "sft")
    plan = itertools.islice(data.packs(Position()), 1024 if quick else 4096)
    costs = [
        sum(cost(entry.source, entry.length, float(data.indexes[entry.source].cost[entry.number])) for entry in one)
        for one, _ in plan
    ]
    spread = np.std(costs) / np.mean(costs)
    for packs, micro, ranks in [(4, 2, 2), (4, 1, 2), *((64, micro, ranks) for micro in (1, 4) for ranks in (2, 4, 8))]:
        shares = []
        for deal in (lambda own: in_order(len(own), ranks, micro), lambda own: dealt(own, ranks, micro)):  # noqa: B023
            slots = [
                [[begin + number for number in batch] for batch in slot]
                for begin in range(0, len(costs) // packs * packs, packs)
                for slot in deal(costs[begin : begin + packs])
            ]
            shares.append(idle_share(costs, slots))
        what = f"sft, {packs} packs a step, micro {micro}, {ranks} ranks: idle"
        told = f"{shares[0]:.1%} in the plan's order, {shares[1]:.1%} dealt; packs differ by {spread:.0%}"
        yield what, told, "less", shares[1] < shares[0]


def features(registry: Registry, folder: Path, sample: Path, quick: bool) -> Iterator[Line]:
    """Steps with kept features beside live ones."""
    fresh_cache(folder, "plan")
    yield from kept(functools.partial(tiny, registry, sample), folder, 1 if quick else 3)


def readers(registry: Registry, folder: Path, sample: Path, quick: bool) -> Iterator[Line]:
    """The race of the readers."""
    from data_readers import race

    (folder / "media").mkdir()
    yield from race(folder / "media", sample, quick)


PARTS = {
    "readers": readers,
    "index": indexes,
    "plan": plans,
    "features": features,
    "memory": memories,
    "balance": balances,
}


def main() -> None:
    """Measures the parts that are asked for; exit code 1 where something is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer records and rounds")
    parser.add_argument("--data", type=Path, default=Path("data/sample"), help="the folder of the sample data")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(PARTS):
        sys.exit(f"--only: no part is called {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    if not (options.data / "train").is_dir():
        sys.exit(f"{options.data}: holds no sample data; make it with `omnikit data sample {options.data}`")
    registry, sample, missed = Registry.load(), options.data.resolve(), 0
    print("| measured | figures | wanted | reached |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="omnikit-benchmark-") as folder:
        for name in options.only.split(","):
            for what, told, wanted, is_reached in PARTS[name](registry, Path(folder), sample, options.quick):
                verdict = {None: "", True: "yes", False: "**no**"}[is_reached]
                print(f"| {what} | {told} | {wanted} | {verdict} |", flush=True)
                missed += is_reached is False
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
