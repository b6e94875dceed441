"""`omnikit train`."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnikit.cli.launching import launch
from omnikit.cli.options import JsonOption, RecipeArgument, SetOption, load
from omnikit.cli.watching import Bars, Lines, Silence

if TYPE_CHECKING:
    from omnikit.component import SourceConfig
    from omnikit.recipe import Recipe


def train(
    recipe: RecipeArgument,
    sets: SetOption = [],  # noqa: B006  (typer wants the literal)
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="The run's folder.  [default: runs/ and the recipe's name]", show_default=False
        ),
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Train with N processes on this machine, one for each GPU or group of cores.  [default: 1]",
            show_default=False,
        ),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="With --nproc: start all processes again, so often, when one has died."),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe through all its stages, and measure it.

    The same command again resumes: finished stages are left alone, a stage that was cut off goes on from its last
    checkpoint. At the end the folder holds report.html: loss curves, the held-out table, samples with their answers.
    Under torchrun or srun it joins the other processes. On SIGTERM or SIGUSR1 it saves, and leaves with exit code 75.
    """
    folder = out or (recipe if recipe.is_dir() else Path("runs") / recipe.stem)
    if nproc is not None:
        resolved = load(recipe, sets)  # what is wrong with it is said once
        if gone := list(missing(resolved)):
            raise ValueError("\n".join(gone))
        again = [str(recipe), *(part for given in sets for part in ("--set", given)), "--out", str(folder)]
        raise typer.Exit(launch(nproc, max_restarts, ["train", *again, *(["--json"] if as_json else [])]))
    if max_restarts:
        raise ValueError("--max-restarts: there are no processes to start again without --nproc; say --nproc too")
    try:
        result = _run(recipe, sets, folder)
    except KeyboardInterrupt:
        print("stopped; the same command again goes on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None
    if result is None:
        return
    if as_json:
        print(json.dumps({"run": str(folder), "heldout": _scores(result)}, indent=1))
        return
    for name, table in result["heldout"].items():
        print(f"{name}: {_sentence(table)}")
    print(f"report: {folder / 'report.html'}")


def _run(path: Path, sets: list[str], folder: Path) -> dict[str, Any] | None:
    """Train, and measure: the report, on the rank that made it."""
    from omnikit.distributed import joined
    from omnikit.interrupts import TRY_AGAIN, Interrupted, Requests, leave
    from omnikit.report import report
    from omnikit.train import TrainingStopped
    from omnikit.train import train as train_recipe

    def check() -> None:
        if gone := list(missing(load(path, sets))):
            raise ValueError("\n".join(gone))

    with joined() as world:
        world.agree(check)
        recipe = load(path, sets)
        kind = (Bars if sys.stderr.isatty() else Lines) if world.is_first else Silence
        with kind(list(recipe.stages), recipe.run.log) as display:
            try:
                train_recipe(recipe, folder, display, world)
            except TrainingStopped as error:
                if world.is_first:
                    print(error, file=sys.stderr)
                raise typer.Exit(1) from None
            except Interrupted as error:
                leave()
                display.note(f"{error}; the same command again goes on from there")
                raise typer.Exit(TRY_AGAIN) from None
    if not world.is_first:
        return None
    with Requests():
        return report(folder, lambda text: print(text, file=sys.stderr, flush=True))


def missing(recipe: "Recipe") -> Iterator[str]:
    """What of the recipe's data is not there, a line each, with what to do about it."""
    sources = {f"data.{name}": source for name, source in recipe.data.items()}
    sources |= {f"heldout.{name}.data": entry.data for name, entry in recipe.heldout.items()}
    for path, source in sources.items():
        gone = source.missing()
        if gone is not None:
            yield f"{path}: {gone} is not there; {_remedy(path, source, Path(gone))}"


def _remedy(path: str, source: "SourceConfig", gone: Path) -> str:
    sample = next((folder for folder in gone.parents if folder.parts[-2:] == ("data", "sample")), None)
    if sample is not None:
        return f"make it with `omnikit data sample {os.path.relpath(sample)}`"
    node, value = (f"{path}.path", "FILE") if "path" in type(source).model_fields else (path, "'{type: ...}'")
    return f"put it there, or name another with `--set {node}={value}`"


def _scores(result: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("metric", "samples", "score", "target", "met", "chance", "blind")
    return {name: {key: table[key] for key in keys} for name, table in result["heldout"].items()}


def _sentence(table: Mapping[str, Any]) -> str:
    """A held-out table in a line: `91.2% right of 180 (target 90.0%: met; chance 12.0%, blind 11.0%)`."""
    unit = "words wrong" if table["metric"] == "wer" else "right"
    beside = f"chance {table['chance']:.1%}"
    if table["modalities"]:
        beside += f", blind {table['blind']:.1%}"
    if table["target"] is not None:
        beside = f"target {table['target']:.1%}: {'met' if table['met'] else 'missed'}; {beside}"
    return f"{table['score']:.1%} {unit} of {table['samples']} samples ({beside})"
