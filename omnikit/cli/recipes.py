"""`omnikit show` and `omnikit check`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from omnikit.cli.options import JsonOption, RecipeArgument, SetOption, load


def show(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE", help="A recipe file, or the folder of a run.", show_default=False),
    ] = None,
    sets: SetOption = [],  # noqa: B006  (typer wants the literal)
    as_json: JsonOption = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes instead, for editors.")
    ] = False,
) -> None:
    """Print a recipe with every option written out.

    Presets, `extends` and --set are applied. What it prints is a recipe again and means the same. To compare two runs:
    `diff <(omnikit show runs/a) <(omnikit show runs/b)`.
    """
    from omnikit.recipe import dump_recipe, json_schema
    from omnikit.registry import Registry

    if schema:
        print(json.dumps(json_schema(Registry.load()), indent=1))
        return
    if recipe is None:
        raise ValueError("omnikit show: give a recipe file or the folder of a run, or --schema")
    resolved = load(recipe, sets)
    if as_json:
        print(json.dumps(resolved.model_dump(mode="json", by_alias=True), indent=1))
    else:
        print(dump_recipe(resolved), end="")


def check(recipe: RecipeArgument, sets: SetOption = [], as_json: JsonOption = False) -> None:  # noqa: B006
    """Check a recipe and print what each stage trains.

    Needs neither data nor weights: the model is laid out on the meta device, without memory or network. Data that is
    not there yet is a warning here; `omnikit train` refuses to start without it.
    """
    resolved = load(recipe, sets)

    from omnikit.checking import check_recipe

    result = check_recipe(resolved)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    _print_tables(str(recipe), result)
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


def _print_tables(name: str, result: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Names and numbers are never cut: a narrow terminal wraps lines instead.
    console = Console(width=120, soft_wrap=True, highlight=False)
    print(f"{name}: tokens of one medium")
    tokens = Table("medium", "tokens", box=box.SIMPLE_HEAD, pad_edge=False)
    tokens.columns[1].justify = "right"
    for modality, sizes in result["tokens"].items():
        for size, count in sizes.items():
            tokens.add_row(f"{modality}: {size}", f"{count:,}")
    console.print(tokens)
    print("What each stage trains, at which peak learning rate")
    stages = Table("stage", "steps", "component", "parameters", "trained", "rate", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (1, 3, 4):
        stages.columns[column].justify = "right"
    for stage, entry in result["stages"].items():
        for number, (path, row) in enumerate(entry["components"].items()):
            told = f"{entry['steps']:,}" if entry["steps"] else f"{entry['epochs']} epochs"
            first = (stage, told) if number == 0 else ("", "")
            stages.add_row(*first, path, f"{row['params']:,}", f"{row['trainable']:,}", _told(row))
        stages.add_row()
    console.print(stages)


def _told(row: dict[str, Any]) -> str:
    if not row["built"]:
        return "not built"
    if isinstance(row["lr"], dict):
        return ", ".join(f"{path} {_rate(rate)}" for path, rate in row["lr"].items())
    return _rate(row["lr"])


def _rate(rate: float | None) -> str:
    return "frozen" if rate is None else f"{rate:g}"
