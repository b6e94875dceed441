"""`omnikit train`."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from omnikit.cli.options import JsonOption, RecipeArgument, SetOption, load


def train(
    recipe: RecipeArgument,
    sets: SetOption = [],  # noqa: B006  (typer wants the literal)
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.  [default: runs/ and the recipe's name]", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe through all its stages, then measure it on its held-out data.

    The same command again resumes: finished stages are left alone, a stage that was cut off goes on from its last
    checkpoint.
    """
    import json

    resolved = load(recipe, sets)
    folder = out or Path("runs") / recipe.stem
    missing = [
        f"{path}: {gone} is not there; make the data first (for recipes/tiny_omni.yaml: `omnikit data sample data/sample`)"
        for path, gone in _missing(resolved)
    ]
    if missing:
        raise ValueError("\n".join(missing))

    from omnikit.report import report
    from omnikit.train import train as train_recipe

    display = Bars(resolved.run.log) if sys.stderr.isatty() else Lines(resolved.run.log)
    with display:
        train_recipe(resolved, folder, display)
        result = report(folder, display.note)
    if as_json:
        print(json.dumps({"run": str(folder), "heldout": _scores(result)}, indent=1))
        return
    for name, table in result["heldout"].items():
        unit = "word error rate" if table["metric"] == "wer" else "right"
        print(
            f"{name}: {table['score']:.1%} {unit} of {table['samples']} "
            f"(chance {table['chance']:.1%}, blind {table['blind']:.1%})"
        )
    print(f"report: {folder / 'report.html'}")


def _missing(recipe: Any) -> list[tuple[str, str]]:  # noqa: ANN401  (Recipe, imported late)
    sources = [(f"data.{name}", source) for name, source in recipe.data.items()]
    sources += [(f"heldout.{name}.data", entry.data) for name, entry in recipe.heldout.items()]
    return [(path, gone) for path, source in sources if (gone := source.missing()) is not None]


def _scores(result: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("metric", "samples", "score", "target", "chance", "blind")
    return {name: {key: table[key] for key in keys} for name, table in result["heldout"].items()}


class Lines:
    """A run as plain lines: a line every `every` steps, and one where a stage begins and ends."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.steps = 0
        self.began = 0.0
        self.first = 0
        self.tokens = 0

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def stage(self, name: str, done: int, steps: int) -> None:
        """A stage begins, or goes on after `done` steps."""
        self.steps, self.first, self.began, self.tokens = steps, done, time.monotonic(), 0
        self.note(f"{name}: {steps} steps" + (f", resumed after {done}" if done else ""))

    def step(self, record: Mapping[str, Any]) -> None:
        """A step was made."""
        self.tokens += record["tokens"]
        step = record["step"]
        if step % self.every == 0 or step == self.steps:
            self.note(f"{record['stage']} {step}/{self.steps}  {self.figures(record)}")

    def figures(self, record: Mapping[str, Any]) -> str:
        """Loss, speed and time left, in words."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        left = seconds / (record["step"] - self.first) * (self.steps - record["step"])
        return f"loss {record['loss']:.3f}  {self.tokens / seconds:,.0f} tokens/s  {left:.0f} s left"

    def note(self, text: str) -> None:
        """Something worth a line."""
        print(text, file=sys.stderr, flush=True)


class Bars(Lines):
    """A run as a progress bar, on a terminal."""

    def __init__(self, every: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        super().__init__(every)
        self.bar = Progress(
            TextColumn("{task.description:>14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
        )
        self.task = None

    def __enter__(self) -> "Bars":
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def stage(self, name: str, done: int, steps: int) -> None:
        """A new bar."""
        self.steps, self.first, self.began, self.tokens = steps, done, time.monotonic(), 0
        self.task = self.bar.add_task(name, total=steps, completed=done, figures="")

    def step(self, record: Mapping[str, Any]) -> None:
        """The bar moves."""
        self.tokens += record["tokens"]
        if self.task is not None:
            self.bar.update(self.task, completed=record["step"], figures=self.figures(record))

    def note(self, text: str) -> None:
        """A line above the bars."""
        self.bar.console.print(text)
