"""The blind control: every medium read as its encoder's `example()`. What is still right then was guessed."""

from collections.abc import Mapping
from typing import Any

from omnikit.component import EncoderConfig, Grid, Item, Medium, ReaderConfig
from omnikit.data import branches_of
from omnikit.recipe import Recipe
from omnikit.sample import Branch


class _ExampleReader(ReaderConfig):
    """Reads every medium as its encoder's `example()`."""

    type = "example"
    encoder: EncoderConfig

    def grids(self, medium: Medium, input: Any) -> list[Grid]:  # noqa: ANN401
        return [self.encoder.example().grid]

    def read(self, medium: Medium, input: Any, grid: Grid) -> Item:  # noqa: ANN401
        return self.encoder.example()


def blind_branches(recipe: Recipe) -> Mapping[str, Branch]:
    """The branches of a run that sees and hears nothing."""
    return {
        name: branch._replace(reader=_ExampleReader(encoder=recipe.encoders[recipe.modalities[name].encoder]))
        for name, branch in branches_of(recipe).items()
    }
