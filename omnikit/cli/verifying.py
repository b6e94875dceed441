"""`omnikit verify`."""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from omnikit.cli.options import JsonOption, RecipeArgument, SetOption, load
from omnikit.cli.training import missing
from omnikit.cli.watching import counted

if TYPE_CHECKING:
    from omnikit.recipe import Recipe


def verify(
    recipe: RecipeArgument,
    sets: SetOption = [],  # noqa: B006  (typer wants the literal)
    stages: Annotated[
        list[str],
        typer.Option(
            "--stage", metavar="NAME", help="Verify this stage alone. Repeatable.  [default: all]", show_default=False
        ),
    ] = [],  # noqa: B006
    steps: Annotated[int, typer.Option(min=3, metavar="N", help="Steps that each stage is trained for.")] = 5,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Components at full size with the weights that the recipe names, and packs at full length, instead of "
            "what their tiny() makes of them.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove on a recipe and its data that training does right.

    Resuming is bitwise; packing, micro-batches and ranks change neither loss nor gradients; ranks that lack modalities
    do not hang; frozen parameters do not move and the others do; stages hand over; label tokens are counted. The stages
    are really trained, a few steps each, in a temporary folder. The exit code is 1 when a law fails.
    """
    resolved = load(recipe, sets)
    chosen = _chosen(resolved, stages)
    used = {source for name in chosen for source in resolved.stages[name].data}
    data = {name: source for name, source in resolved.data.items() if name in used}
    if gone := list(missing(resolved.model_copy(update={"data": data, "heldout": {}}))):
        raise ValueError("\n".join(gone))

    from omnikit.verification import shrunk
    from omnikit.verification import verify as prove

    verdicts = []
    with counted() as progress, redirect_stdout(sys.stderr):  # what components print is no part of the table
        for verdict in prove(shrunk(resolved, chosen, steps, full), progress):
            verdicts.append(verdict)
    passed = all(verdict.passed is not False for verdict in verdicts)
    if as_json:
        found = {"passed": passed, "recipe": str(recipe), "full": full, "steps": steps}
        print(json.dumps({**found, "laws": [verdict.as_data() for verdict in verdicts]}, indent=1))
    else:
        for verdict in verdicts:
            print(verdict)
        failed = sum(verdict.passed is False for verdict in verdicts)
        holding = sum(verdict.passed is True for verdict in verdicts)
        print(f"{failed} of {len(verdicts)} laws fail" if failed else f"{holding} laws hold")
    if not passed:
        raise typer.Exit(1)


def _chosen(recipe: "Recipe", stages: Sequence[str]) -> list[str]:
    """The stages that are meant, in the recipe's order."""
    from omnikit.registry import did_you_mean

    for name in stages:
        if name not in recipe.stages:
            known = did_you_mean(name, recipe.stages, "stages")
            raise ValueError(f"--stage {name}: no stage is called {name[:60]!r}{known}")
    return [name for name in recipe.stages if not stages or name in stages]
