"""The benchmarks of the paper's tables: a definition file each, and a few rows of ours to try it on."""

from pathlib import Path

import omnikit.evaluate
from omnikit.evaluate import Defined, defined

__all__ = ["BENCHMARKS"]

_FOLDER = Path(omnikit.evaluate.__file__).parent

BENCHMARKS: tuple[type[Defined], ...] = tuple(
    defined(file, _FOLDER / "rows" / file.stem) for file in sorted((_FOLDER / "definitions").glob("*.yaml"))
)
"""No definition is read for it, so that listing components stays quick."""
