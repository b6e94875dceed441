"""Modules built without their parameters' memory, for models that fit no single machine whole.

`torch.device("meta")` around `build()` would take the buffers too, and what no checkpoint holds (positions, rotary
frequencies, masks) would be lost. So parameters alone are moved, the moment that a module registers them: at most one
of them has memory at any time, initialising the rest costs nothing, and buffers are computed as always.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["fill", "parameters_on_meta", "ties"]


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built within have parameters of shape and dtype alone; buffers are real. `fill` gives them values.

    A parameter that is registered twice is one parameter still. Not for several threads at once.
    """
    register = nn.Module.register_parameter
    # The same tensor, registered again, must give the same parameter: that is what a tie is. Weak, or every
    # parameter's memory would stay in use to the end.
    moved = WeakTensorKeyDictionary()

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            if param not in moved:
                moved[param] = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
            param = moved[param]
        register(module, name, param)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def ties(module: nn.Module) -> dict[str, str]:
    """Name -> name of the parameter that it is one tensor with: the module's optional `tied()`."""
    return dict(getattr(module, "tied", lambda: ())())


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives every parameter these values, by name, without a copy, and ties them again as `tied()` says."""
    tied = ties(module)  # asked first: afterwards each name has a tensor of its own
    module.load_state_dict(dict(tensors), assign=True)
    for name, shared in tied.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, module.get_parameter(shared))
