"""What stands for `omnikit.reading` in an exported folder: media are read in the process itself."""

from typing import NamedTuple

from omnikit.component import Grid, Input, Item, Medium, ReaderConfig
from omnikit.media import MediaLimits, limited


class Reading(NamedTuple):
    """Media are read within these limits."""

    limits: MediaLimits = MediaLimits()

    def grids(self, reader: ReaderConfig, medium: Medium, input: Input) -> list[Grid]:
        """The grids that the reader can give for this medium, largest first."""
        with limited(self.limits):
            return reader.grids(medium, input)

    def read(self, reader: ReaderConfig, medium: Medium, input: Input, grid: Grid) -> Item:
        """The medium as an Item; its value is an array."""
        with limited(self.limits):
            return reader.read(medium, input, grid)
