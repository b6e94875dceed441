"""Checks that take other processes: a worker that gets the Config, and two ranks that shard the module."""

from typing import Any

import torch
from torch import Tensor, nn

from omnikit.component import Component
from omnikit.protocols import blocks
from omnikit.testing.configs import Dump, dumped, loaded
from omnikit.testing.modules import CLOSE, apart, gradients_of
from omnikit.testing.processes import ask_rank, ask_ranks
from omnikit.testing.results import Fault
from omnikit.testing.trials import Trial

__all__ = ["PROCESS_CHECKS", "shards_on_two_ranks", "travels_to_a_worker"]


def travels_to_a_worker(trial: Trial) -> str:
    """The Config is pickled into another process, and builds the same module there."""
    config, rows = ask_rank(_built_there, trial)
    if config != trial.config:
        raise Fault("in another process it is another Config")
    with torch.no_grad():
        here = trial.run(trial.build(), trial.inputs)
    if apart(torch.from_numpy(rows), here) > CLOSE:
        raise Fault("in another process it builds another module; keep nothing outside the Config's fields")
    return ""


def _built_there(trial: Trial) -> tuple[Component, Any]:
    with torch.no_grad():
        return trial.config, trial.run(trial.build(), trial.inputs).float().numpy()


def shards_on_two_ranks(trial: Trial) -> str:
    """Sharded under FSDP2 over two gloo ranks it computes the rows and gradients of the whole module."""
    # The Config goes as text: whether it can be pickled is another check's business.
    rows, gradients = (
        max(found) for found in zip(*ask_ranks(_sharded, dumped(trial.config), _bare(trial)), strict=True)
    )
    return f"rows differ by {rows:.0e}, gradients by {gradients:.0e}"


def _bare(trial: Trial) -> Trial:
    bare: Trial = object.__new__(type(trial))
    bare.__dict__ = {**trial.__dict__, "config": None}
    return bare


class Root(nn.Module):
    """What is sharded as a whole: FSDP2 gathers parameters in the call of a module, and backbones have no `forward`."""

    def __init__(self, part: nn.Module, trial: Trial) -> None:
        super().__init__()
        self.part = part
        self.trial = trial

    def forward(self, inputs: Any) -> Tensor:  # noqa: ANN401
        return self.trial.run(self.part, inputs)


class RootTrial(Trial):
    """A trial of the root: its run is its call."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial.config)
        self.trial = trial

    def run(self, module: nn.Module, inputs: Any) -> Tensor:  # noqa: ANN401
        return module(inputs)


def _sharded(dump: Dump, bare: Trial) -> tuple[float, float]:
    """On each rank: how far the sharded module's rows and gradients are from the whole one's."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    trial = bare.with_config(loaded(dump))
    root_trial = RootTrial(trial)
    plain, sharded = (Root(trial.build(), trial) for _ in range(2))
    # As many inputs on either rank, but others.
    shares = [trial.inputs[:2], list(reversed(trial.inputs[-2:]))]
    own = shares[dist.get_rank()]
    with torch.no_grad():
        expected = plain(own)
    parts = [gradients_of(root_trial, plain, share) for share in shares]
    for block in blocks(sharded.part):
        fully_shard(block)
    fully_shard(sharded)
    with torch.no_grad():
        rows = apart(sharded(own), expected)
    if rows > CLOSE:
        raise Fault(f"sharded, rows differ by {rows:.1e} of the largest value")
    gradients = 0.0
    for name, gradient in gradients_of(root_trial, sharded, own).items():
        first, second = parts[0][name], parts[1][name]
        if first is None or second is None:
            continue  # without a gradient in the whole module: told by its own check
        if gradient is None:
            raise Fault(f"sharded, {name} gets no gradient")
        whole: Any = gradient  # a DTensor
        difference = apart(whole.full_tensor(), (first + second) / 2)
        # An exact zero, as of biases that a softmax ignores, has rounding alone on either side.
        if difference > 50 * CLOSE and float((first + second).abs().max()) > 1e-4:
            raise Fault(f"sharded, the gradient of {name} differs by {difference:.1e} of its largest value")
        gradients = max(gradients, difference if float((first + second).abs().max()) > 1e-4 else 0.0)
    return rows, gradients


PROCESS_CHECKS = (travels_to_a_worker, shards_on_two_ranks)
