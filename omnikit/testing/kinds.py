"""The kit's front: the list of checks of each kind, and what a plugin's tests call."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from omnikit.component import (
    BackboneConfig,
    BenchmarkConfig,
    Component,
    EncoderConfig,
    Grid,
    Input,
    Medium,
    ProjectorConfig,
    ReaderConfig,
    SourceConfig,
)
from omnikit.testing.backbones import BACKBONE_CHECKS
from omnikit.testing.benchmarks import BENCHMARK_CHECKS, BenchmarkTrial
from omnikit.testing.configs import comes_back_from_json, imports_without_torch
from omnikit.testing.costs import COST_CHECKS
from omnikit.testing.elsewhere import PROCESS_CHECKS
from omnikit.testing.modules import MODULE_CHECKS
from omnikit.testing.readers import READER_CHECKS, ReaderTrial
from omnikit.testing.results import Fault, Result, reason, tried
from omnikit.testing.sources import SOURCE_CHECKS, SourceTrial
from omnikit.testing.trials import GRIDS, BackboneTrial, EncoderTrial, ProjectorTrial, Trial

__all__ = [
    "CHECKS",
    "assert_conforms",
    "check_backbone",
    "check_benchmark",
    "check_encoder",
    "check_projector",
    "check_reader",
    "check_source",
]


def features_match_grids(trial: EncoderTrial) -> str:
    """As many features as the grids of the items hold, the example's too, each `width` wide."""
    return _rows_match(trial, [*([one] for one in trial.inputs), [trial.stand_in], trial.inputs], "features")


def example_is_a_valid_item(trial: EncoderTrial) -> str:
    """`example()` is an Item like a reader's: a float32 array of finite numbers, and a grid."""
    value, grid = trial.config.example()
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or not np.isfinite(value).all():
        seen = getattr(value, "dtype", type(value).__name__)
        raise Fault(f"its value is {seen}; give a numpy array of finite float32, as readers do")
    if not (isinstance(grid, tuple) and len(grid) == 3 and all(isinstance(n, int) and n > 0 for n in grid)):
        raise Fault(f"its grid is {grid!r}; a grid is (t, h, w), whole numbers above 0")
    return f"grid {grid}"


def tokens_equal_shrink(trial: ProjectorTrial) -> str:
    """As many tokens as `shrink` says, for every grid that it takes, each as wide as was asked for."""
    taken = [trial.features(grid) for grid in trial.grids if trial.tokens(grid)]
    return _rows_match(trial, [*([one] for one in taken), taken[:6]], "tokens")


def _rows_match(trial: Trial, batches: Sequence[Sequence[object]], rows: str) -> str:
    module = trial.build()
    width = trial.widths[1] if isinstance(trial, ProjectorTrial) else module.width
    for batch in batches:
        with torch.no_grad():
            shape = tuple(trial.run(module, batch).shape)
        wanted = (sum(trial.rows(one) for one in batch), width)
        if shape != wanted:
            names = ", ".join(trial.name(one) for one in batch)
            raise Fault(f"gives {rows} of shape {shape} for {names}; it would be {wanted}")
    return f"{len(batches)} batches"


def shrink_gives_grids_or_refuses(trial: ProjectorTrial) -> str:
    """`shrink` gives a grid of at least one token or raises a ValueError, whatever the grid."""
    taken = 0
    for grid in trial.grids:
        try:
            small = trial.config.shrink(grid)
        except ValueError:
            continue
        except Exception as error:
            raise Fault(f"shrink{grid} raises {reason(error)}; make it a ValueError") from error
        if not (isinstance(small, tuple) and len(small) == 3 and all(isinstance(n, int) and n > 0 for n in small)):
            raise Fault(f"shrink{grid} is {small}; where there is no token, raise a ValueError that says why")
        taken += 1
    return f"takes {taken} of {len(trial.grids)} grids"


CONFIG_CHECKS = (comes_back_from_json, imports_without_torch)
OF_MODULES = (*MODULE_CHECKS, *COST_CHECKS, *PROCESS_CHECKS, *CONFIG_CHECKS)
CHECKS = {
    "reader": (*READER_CHECKS, *CONFIG_CHECKS),
    "encoder": (example_is_a_valid_item, features_match_grids, *OF_MODULES),
    "projector": (tokens_equal_shrink, shrink_gives_grids_or_refuses, *OF_MODULES),
    "backbone": (*BACKBONE_CHECKS, *OF_MODULES),
    "source": (*SOURCE_CHECKS, *CONFIG_CHECKS),
    "benchmark": BENCHMARK_CHECKS,
}
"""The checks of each kind, in the order in which they are run."""


def check_reader(config: ReaderConfig, input: Input, media: Sequence[Medium] | None = None) -> list[Result]:
    """Every check of a reader, for this Input: of these media, or of its own specimens."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder)

        def trial() -> ReaderTrial:
            return ReaderTrial(config, input, config.specimens(written, input) if media is None else media)

        return tried(CHECKS["reader"], trial)


def check_encoder(config: EncoderConfig, reader: ReaderConfig | None = None) -> list[Result]:
    """Every check of an encoder, which is built as it is given: give its `tiny()`.

    With a reader that makes its Input, its items are of that reader's specimens: several sizes, where the encoder's
    example in noise has one.
    """
    return tried(CHECKS["encoder"], lambda: EncoderTrial(config, reader))


def check_projector(
    config: ProjectorConfig, d_in: int = 24, d_out: int = 40, grids: Sequence[Grid] = GRIDS
) -> list[Result]:
    """Every check of a projector, between these widths, on those of the grids that it takes."""
    return tried(CHECKS["projector"], lambda: ProjectorTrial(config, d_in, d_out, grids))


def check_backbone(config: BackboneConfig) -> list[Result]:
    """Every check of a backbone, which is built as it is given: give its `tiny()`."""
    return tried(CHECKS["backbone"], lambda: BackboneTrial(config))


def check_source(config: SourceConfig) -> list[Result]:
    """Every check of a source whose data is there. What must be damaged is a specimen of its class."""
    return tried(CHECKS["source"], lambda: SourceTrial(config))


def check_benchmark(config: BenchmarkConfig) -> list[Result]:
    """Every check of a benchmark, on the rows that it brings."""
    return tried(CHECKS["benchmark"], lambda: BenchmarkTrial(config))


def assert_conforms(config: Component, *, input: Input | None = None, reader: ReaderConfig | None = None) -> None:
    """Asserts that every check of the Config's kind passes; the AssertionError lists those that do not.

    A reader wants the `input` to read for; an encoder of an Input of its own may have a `reader`.
    """
    if isinstance(config, ReaderConfig):
        assert input is not None, "assert_conforms of a reader takes the input to read for, as encoders have it"
        results = check_reader(config, input)
    elif isinstance(config, EncoderConfig):
        results = check_encoder(config, reader)
    elif isinstance(config, ProjectorConfig):
        results = check_projector(config)
    elif isinstance(config, BackboneConfig):
        results = check_backbone(config)
    elif isinstance(config, BenchmarkConfig):
        results = check_benchmark(config)
    else:
        assert isinstance(config, SourceConfig), f"{type(config).__name__} is no Config of a component"
        results = check_source(config)
    failed = [str(result) for result in results if not result.passed]
    if failed:
        listing = "\n  ".join(failed)
        raise AssertionError(f"{config.type} fails {len(failed)} of {len(results)} checks:\n  {listing}")
