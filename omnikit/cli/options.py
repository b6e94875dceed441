"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from omnikit.recipe import Recipe

RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="A recipe, such as recipes/tiny_omni.yaml, or the folder of a run.", show_default=False
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Replace a node of the recipe, e.g. --set modalities.audio.projector=mlp. The value is YAML; repeatable.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]


def load(path: Path, sets: list[str]) -> "Recipe":
    """The recipe of a file, or of a run's folder."""
    from omnikit.recipe import load_recipe
    from omnikit.registry import Registry

    return load_recipe(path / "recipe.yaml" if path.is_dir() else path, Registry.load(), sets)
