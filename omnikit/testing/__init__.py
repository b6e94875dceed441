"""The conformance kit: what a component must do, as checks that a plugin's own tests and the command line run.

    assert_conforms(MyEncoder().tiny())

or `check_encoder(...)` and its five sisters for the list of results. Importing this imports no torch, so that readers
can ask it for specimens; what needs torch is imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from omnikit.testing.results import Fault, Result
from omnikit.testing.specimens import films, pictures, sounds

if TYPE_CHECKING:
    from omnikit.testing.kinds import (
        assert_conforms,
        check_backbone,
        check_benchmark,
        check_encoder,
        check_projector,
        check_reader,
        check_source,
    )

__all__ = [
    "Fault",
    "Result",
    "assert_conforms",
    "check_backbone",
    "check_benchmark",
    "check_encoder",
    "check_projector",
    "check_reader",
    "check_source",
    "films",
    "pictures",
    "sounds",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("omnikit.testing.kinds"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
