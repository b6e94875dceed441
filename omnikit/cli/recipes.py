"""`omnikit show` and `omnikit check`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from omnikit.cli.options import JsonOption, RecipeArgument, SetOption, load


def show(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe file, or the folder of a run.", show_default=False)
    ] = None,
    sets: SetOption = [],  # noqa: B006  (typer wants the literal)
    as_json: JsonOption = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes instead.")] = False,
) -> None:
    """Print a recipe fully resolved: presets, `extends` and --set applied, every option written out."""
    from omnikit.recipe import dump_recipe, json_schema
    from omnikit.registry import Registry

    if schema:
        print(json.dumps(json_schema(Registry.load()), indent=1))
        return
    if recipe is None:
        raise typer.BadParameter("give a recipe file, or --schema")
    resolved = load(recipe, sets)
    print(json.dumps(resolved.model_dump(mode="json", by_alias=True), indent=1) if as_json else dump_recipe(resolved))


def check(recipe: RecipeArgument, sets: SetOption = [], as_json: JsonOption = False) -> None:  # noqa: B006
    """Check a recipe without data or weights, and print what each stage trains.

    The model is laid out on the meta device: no memory, no network. Data that is not there yet is a warning here;
    `omnikit train` refuses to start without it.
    """
    from omnikit.checking import check_recipe

    result = check_recipe(load(recipe, sets))
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        _print_tables(str(recipe), result)
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


def _print_tables(name: str, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    tokens = Table("medium", "tokens", title=f"{name}: tokens of one medium", title_justify="left")
    for modality, sizes in result["tokens"].items():
        for size, count in sizes.items():
            tokens.add_row(f"{modality}: {size}", f"{count:,}")
    if result["tokens"]:
        console.print(tokens)
    stages = Table("stage", "steps", "component", "parameters", "trained", "rate", title="Stages", title_justify="left")
    for stage, entry in result["stages"].items():
        for number, (path, row) in enumerate(entry["components"].items()):
            first = (stage, f"{entry['steps']:,}") if number == 0 else ("", "")
            rate = row["lr"]
            told = "not built" if not row["built"] else "frozen" if rate is None else _rates(rate)
            stages.add_row(*first, path, f"{row['params']:,}", f"{row['trainable']:,}", told)
        stages.add_section()
    console.print(stages)


def _rates(rate: float | dict[str, float | None]) -> str:
    if isinstance(rate, dict):
        return ", ".join(f"{path} {'frozen' if lr is None else f'{lr:g}'}" for path, lr in rate.items())
    return f"{rate:g}"
