"""Image and audio projectors side by side on the tiny recipe: held-out score of each, over seeds.

    python benchmarks/swap.py runs/swap [--seeds 3] [--image-steps 800] [--audio-steps 400]

Every run is recipes/tiny_omni.yaml with one projector exchanged and only the stages that meet it: `language` and the
image stages, scored on written questions about pictures, or `language` and `audio`, scored on dictation. Two runs at a
time, one thread each, so that two cores are used whole. Results are appended to FOLDER/results.jsonl; the same command
again goes on where it was stopped, and prints the table.
"""

import argparse
import json
import shutil
import statistics
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from omnikit.component import count
from omnikit.generate import Run
from omnikit.heldout import measure
from omnikit.recipe import Recipe, dump_recipe, load_recipe
from omnikit.registry import Registry
from omnikit.train import train

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny_omni.yaml"
IMAGE = ("image_caption", "image_vqa", "image_full")
PROJECTORS = {
    "image": (
        "{type: pool_mlp, newline: false}",
        "{type: pool_mlp, pool: conv, newline: false}",
        "{type: concat, rate: 4}",
        "{type: c_abstractor, newline: false}",
        "mlp",
    ),
    "audio": tuple(
        f"{{type: {kind}, rate: {rate}}}"
        for rate in (4, 2, 8)
        for kind in ("conv_gmlp", "mean_pool", "concat", "strided_conv")
    ),
}


class Task(NamedTuple):
    """One run: a projector of a modality (an empty one: the language stage alone), from one seed."""

    modality: str
    projector: str
    seed: int

    def folder(self, root: Path) -> Path:
        """Where it is trained."""
        name = "".join(letter if letter.isalnum() else "-" for letter in self.projector).strip("-")
        return root / f"seed{self.seed}" / f"{self.modality}-{name}"


def recipe_of(task: Task, steps: dict[str, int]) -> Recipe:
    """The tiny recipe with the task's projector and stages."""
    stages = {"image": IMAGE, "audio": ("audio",), "language": ()}[task.modality]
    everything = load_recipe(RECIPE, registry := Registry.load())
    sets = [f"stages.{name}=null" for name in everything.stages if name not in ("language", *stages)]
    sets += [
        f"heldout.{name}=null" for name in everything.heldout if name != {"audio": "speech"}.get(task.modality, "image")
    ]
    sets += [f"run.seed={task.seed}", "run.save=100000", "run.workers=0"]
    if task.projector:
        sets.append(f"modalities.{task.modality}.projector={task.projector}")
        last = stages[-1]
        sets.append(f"stages.{last}.steps={steps[task.modality]}")
    return load_recipe(RECIPE, registry, sets)


def run(task: Task, root: Path, steps: dict[str, int]) -> dict[str, Any]:
    """Trains and scores one task."""
    torch.set_num_threads(1)
    folder, recipe = task.folder(root), recipe_of(task, steps)
    shutil.rmtree(folder, ignore_errors=True)
    if task.projector:
        # The language stage builds no projector: what it leaves is bitwise the same under all of them.
        shutil.copytree(Task("language", "", task.seed).folder(root), folder)
        (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    train(recipe, folder, _Silent())
    if not task.projector:
        return {**task._asdict()}
    done = Run.load(folder, Registry.load())
    [table] = measure(done).values()
    projector = recipe.modalities[task.modality].projector
    reader, encoder = recipe.modalities[task.modality].reader, recipe.encoders[recipe.modalities[task.modality].encoder]
    module = done.model.modalities[task.modality]["projector"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = {
        **task._asdict(),
        "score": table["score"],
        "tokens": {name: count(projector.shrink(grid)) for name, grid in reader.sizes(encoder.input).items()},
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "loss": statistics.mean(row["loss"] for row in rows[-50:]),
        "seconds": sum(row["seconds"] for row in rows if row["stage"] != "language"),
    }
    shutil.rmtree(folder)
    return result


class _Silent:
    def indexing(self, source: str, done: int, records: int) -> None: ...

    def caching(self, what: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...

    def heldout(self, record: Any) -> None: ...

    def stage(self, name: str, done: int, steps: int) -> None: ...

    def step(self, record: Any) -> None: ...


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-steps", type=int, default=800)
    parser.add_argument("--audio-steps", type=int, default=400)
    given = parser.parse_args()
    steps = {"image": given.image_steps, "audio": given.audio_steps}
    root = given.folder.resolve()
    root.mkdir(parents=True, exist_ok=True)
    results = root / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    done = {Task(row["modality"], row["projector"], row["seed"]) for row in rows}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for wave in ("language", "swap"):
            tasks = [
                Task(modality, projector, seed)
                for modality, projectors in ({"language": ("",)} if wave == "language" else PROJECTORS).items()
                for projector in projectors
                for seed in range(given.seeds)
            ]
            waiting = [pool.submit(run, task, root, steps) for task in tasks if task not in done]
            for future in waiting:
                rows.append(future.result())
                with results.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(json.dumps(rows[-1]), flush=True)
    by_projector = defaultdict(list)
    for row in rows:
        if row["projector"]:
            by_projector[row["modality"], row["projector"]].append(row)
    print("| projector | tokens | parameters | score, mean (each seed) | final loss | s a run |")
    print("|---|---|---|---|---|---|")
    for (modality, projector), runs in by_projector.items():
        scores = [row["score"] for row in runs]
        cells = [
            f"{modality}: {projector}",
            ", ".join(f"{name} {number}" for name, number in runs[0]["tokens"].items()),
            f"{runs[0]['parameters']:,}",
            f"{statistics.mean(scores):.1%} ({', '.join(f'{score:.1%}' for score in sorted(scores))})",
            f"{statistics.mean(row['loss'] for row in runs):.3f}",
            f"{statistics.mean(row['seconds'] for row in runs):.0f}",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
