"""What a run does, seen from outside: through torch's hooks on modules and optimizers, and through its display."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from omnikit.checkpoint import flat_tensors
from omnikit.model import OmniModel
from omnikit.stages import trained
from omnikit.testing.results import Fault


class Quiet:
    """A display that keeps what it is shown."""

    def __init__(self) -> None:
        self.began: list[tuple[str, int]] = []
        """Stages, and the steps after which they went on, each time that one began."""
        self.records: list[Mapping[str, Any]] = []

    def indexing(self, source: str, done: int, records: int) -> None:
        """Nothing."""

    def caching(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def stage(self, name: str, done: int, steps: int) -> None:
        """A stage begins."""
        self.began.append((name, done))

    def step(self, record: Mapping[str, Any]) -> None:
        """A step was made."""
        self.records.append(record)

    def heldout(self, record: Mapping[str, Any]) -> None:
        """Nothing."""


@contextmanager
def observed(
    forward: Callable[[OmniModel], None], step: Callable[[OmniModel], None] = lambda _: None
) -> Iterator[None]:
    """While entered, `forward` is called before each forward pass of a whole model, and `step` before each step of an
    optimizer, when its gradients are what it is given; both with the model.
    """
    models: list[OmniModel] = []

    def before(module: torch.nn.Module, _: object) -> None:
        if isinstance(module, OmniModel):
            models[:] = [module]
            forward(module)

    handles = [
        register_module_forward_pre_hook(before),
        register_optimizer_step_pre_hook(lambda *_: step(models[0])),
    ]
    try:
        yield
    finally:
        models.clear()
        for handle in handles:
            handle.remove()


def gradients_of(model: OmniModel) -> dict[str, Tensor]:
    """A copy of every trained parameter's gradient, whole, on the CPU. Called by every rank. None at all is a Fault."""
    idle = [name for name, parameter in trained(model).items() if parameter.grad is None]
    if idle:
        raise Fault(f"{len(idle)} trained parameters have no gradient at all, such as {idle[0]}")
    grads = {name: parameter.grad for name, parameter in trained(model).items() if parameter.grad is not None}
    whole = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}
    return {name: grad.detach().to("cpu", torch.float32, copy=True) for name, grad in whole.items()}


def apart(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference between gradients, as a part of the largest entry in the same component; and of what.

    Not of the same parameter: some gradients, as that of the bias of keys, are sums that cancel to nothing but
    rounding.
    """
    if found.keys() != expected.keys():
        raise Fault(f"gradients of other parameters: {sorted(found.keys() ^ expected.keys())[:3]}")
    largest: dict[str, float] = {}
    for name, gradient in expected.items():
        path = component_of(name)
        largest[path] = max(largest.get(path, 0.0), float(gradient.abs().max()))
    worst, where = 0.0, "all equal"
    for name, gradient in expected.items():
        difference = float((found[name] - gradient).abs().max())
        if difference == 0.0:
            continue
        share = difference / max(largest[component_of(name)], 1e-12)
        if not share <= worst:
            worst, where = share, name
        if share != share:
            break
    return worst, where


def component_of(name: str) -> str:
    """The path of the component that a parameter belongs to."""
    parts = name.split(".")
    depth = {"encoders": 2, "modalities": 3}
    return ".".join(parts[: depth.get(parts[0], 1)])


def fingerprints(model: OmniModel) -> dict[str, str]:
    """A hash of the bits of every tensor of the model, by name."""
    return {name: fingerprint(tensor) for name, tensor in flat_tensors(model)[0].items()}


def fingerprint(tensor: Tensor) -> str:
    """A hash of a tensor's bits."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy()).hexdigest()
