"""A module of each kind under trial: what it is built from, what goes in, and how much must come out.

All three kinds share one shape: several inputs that must not influence each other, and for each a promised number of
rows, all rows end to end.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omnikit.component import (
    BackboneConfig,
    Component,
    EncoderConfig,
    Grid,
    Item,
    ProjectorConfig,
    ReaderConfig,
    count,
)
from omnikit.testing.items import items_of
from omnikit.testing.results import Fault

__all__ = ["BackboneTrial", "EncoderTrial", "ProjectorTrial", "Trial", "seeded"]


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """torch's generator at a known place, and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class Trial:
    """A Config, at least two different inputs (largest first), and a stand-in for where there is none."""

    inputs: Sequence[Any]
    stand_in: Any

    def __init__(self, config: Component, *given: Any) -> None:  # noqa: ANN401
        self.config: Any = config
        self.given = given

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "given": ()}  # what the inputs were made with stays here

    def remade(self, config: Component) -> "Trial":
        """A trial of another Config, with inputs of its own."""
        return type(self)(config, *self.given)

    def with_config(self, config: Component) -> "Trial":
        """The same inputs to another Config."""
        other = object.__new__(type(self))
        other.__dict__ = {**self.__dict__, "config": config}
        return other

    def build(self, seed: int = 0) -> nn.Module:
        """The module in evaluation mode, random from this seed, and a little off its start.

        For many begin with a last layer or a gate of zeros, behind which whatever is wrong gives the same.
        """
        with seeded(seed), torch.no_grad():
            module = self.module().eval()
            for parameter in module.parameters():
                if not parameter.is_meta:
                    parameter.add_(0.02 * torch.randn(parameter.shape))
        return module

    def module(self) -> nn.Module:
        """What the Config builds."""
        raise NotImplementedError

    def run(self, module: nn.Module, inputs: Sequence[Any]) -> Tensor:
        """The rows of all inputs end to end."""
        raise NotImplementedError

    def rows(self, input: Any) -> int:  # noqa: ANN401
        """How many rows this input makes."""
        raise NotImplementedError

    def cost(self, input: Any) -> float:  # noqa: ANN401
        """What the Config says that this input costs, in FLOPs."""
        raise NotImplementedError

    def name(self, input: Any) -> str:  # noqa: ANN401
        """The input in words."""
        return f"grid {input[1]}"


class EncoderTrial(Trial):
    """Inputs are Items; rows are features. A reader, where given, makes further Items of its specimens."""

    def __init__(self, config: EncoderConfig, reader: ReaderConfig | None = None) -> None:
        super().__init__(config, reader)
        self.stand_in = config.example()
        self.inputs = items_of(config, reader)

    def module(self) -> nn.Module:
        return self.config.build()

    def run(self, module: nn.Module, inputs: Sequence[Item]) -> Tensor:
        return module([Item(torch.from_numpy(item.value.copy()), item.grid) for item in inputs])

    def rows(self, input: Item) -> int:
        return count(input.grid)

    def cost(self, input: Item) -> float:
        return self.config.cost(input.grid)


GRIDS: tuple[Grid, ...] = (
    *((t, 1, 1) for t in (*range(1, 20), 24, 32, 50)),
    *((v, h, w) for v, h, w in ((1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 4, 4), (2, 5, 4), (1, 4, 9), (3, 6, 6))),
    *((v, h, w) for v, h, w in ((2, 8, 8), (1, 9, 9), (1, 1, 7), (2, 7, 1), (1, 12, 6), (1, 14, 14), (2, 27, 27))),
)
"""Sequences and views, of odd and even sides, some smaller than any window."""


class ProjectorTrial(Trial):
    """Inputs are (features, grid); rows are tokens. `grids` are those to try; refused ones are left out of inputs."""

    def __init__(self, config: ProjectorConfig, d_in: int = 24, d_out: int = 40, grids: Sequence[Grid] = GRIDS) -> None:
        super().__init__(config, d_in, d_out, grids)
        self.widths = d_in, d_out
        self.grids = tuple(grids)
        taken = sorted({grid for grid in grids if self.tokens(grid)}, key=count)
        if len(taken) < 2:
            raise Fault(
                f"shrink takes fewer than two of the grids {grids[0]}, {grids[1]}, ...; give `grids` that it takes"
            )
        # From small to large, but none that would make the checks slow.
        few = [grid for grid in taken if count(grid) <= 200][-3:] or taken[:2]
        self.inputs = [self.features(grid) for grid in reversed(few if len(few) > 1 else taken[:2])]
        self.stand_in = self.features(taken[0])

    def tokens(self, grid: Grid) -> int:
        """Tokens that shrink promises, 0 where it refuses the grid."""
        try:
            return count(self.config.shrink(grid))
        except Exception:  # what shrink may raise is a check's business
            return 0

    def features(self, grid: Grid) -> tuple[np.ndarray, Grid]:
        """Random features of this grid."""
        random = np.random.default_rng(list(grid))
        return random.standard_normal((count(grid), self.widths[0])).astype(np.float32), grid

    def module(self) -> nn.Module:
        return self.config.build(*self.widths)

    def run(self, module: nn.Module, inputs: Sequence[tuple[np.ndarray, Grid]]) -> Tensor:
        features = torch.from_numpy(np.concatenate([values for values, _ in inputs]))
        # As an encoder of the same weights would give them; under autocast float32, which it casts itself.
        features = features.to(next((one.dtype for one in module.parameters()), torch.float32))
        return module(features, [grid for _, grid in inputs])

    def rows(self, input: tuple[np.ndarray, Grid]) -> int:
        return count(self.config.shrink(input[1]))

    def cost(self, input: tuple[np.ndarray, Grid]) -> float:
        return self.config.cost(input[1], *self.widths)


class BackboneTrial(Trial):
    """Inputs are documents (token ids), packed into one row; rows are the logits of their positions."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        random, size = np.random.default_rng(0), config.tokenizer().get_vocab_size()
        self.inputs = [random.integers(0, size, length) for length in (23, 11, 6)]
        self.stand_in = self.inputs[-1]

    def module(self) -> nn.Module:
        return self.config.build()

    def run(self, module: nn.Module, inputs: Sequence[np.ndarray]) -> Tensor:
        padding = 3
        ids = torch.from_numpy(np.concatenate([*inputs, np.zeros(padding, np.int64)]))[None]
        lengths = torch.tensor([*(len(document) for document in inputs), padding])
        segments = torch.arange(1, len(inputs) + 2).repeat_interleave(lengths)[None]
        segments[:, len(ids[0]) - padding :] = 0
        positions = torch.cat([torch.arange(int(length)) for length in lengths])[None]
        return decoded(module, ids, segments, positions)

    def rows(self, input: np.ndarray) -> int:
        return len(input)

    def cost(self, input: np.ndarray) -> float:
        return self.config.cost(len(input), len(input))

    def name(self, input: np.ndarray) -> str:
        return f"a document of {len(input)} tokens"


def decoded(module: Any, ids: Tensor, segments: Tensor, positions: Tensor) -> Tensor:  # noqa: ANN401
    """Logits (N, V) of every position that is not padding."""
    hidden = module.hidden(module.embed(ids), segments, positions)
    return module.head(hidden[segments > 0])
