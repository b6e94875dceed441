"""Checks of what the Configs of encoders, projectors and backbones build: one law each."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from omnikit.building import fill, parameters_on_meta, ties
from omnikit.protocols import blocks
from omnikit.testing.results import Fault, reason
from omnikit.testing.trials import Trial, seeded

__all__ = [
    "MODULE_CHECKS",
    "apart",
    "gradients_of",
]

CLOSE = 2e-5
"""Largest difference, as a part of the largest value, between float32 results that differ in the order of sums."""
BF16 = 0.1
"""The same for bfloat16, which has 8 bits of mantissa, over the few layers of a tiny module."""


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a part of the largest expected value; other shapes or NaN are a Fault."""
    if found.shape != expected.shape:
        raise Fault(f"gives shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    if not (found.isfinite().all() and expected.isfinite().all()):
        raise Fault("gives NaN or infinity")
    if not found.numel():
        return 0.0
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6))


def gradients_of(trial: Trial, module: nn.Module, inputs: Any) -> dict[str, Tensor | None]:  # noqa: ANN401
    """The gradient of every parameter, of a random weighting of the outputs (a plain sum is constant behind norms)."""
    module.zero_grad()
    out = trial.run(module, inputs)
    with seeded(1):
        (out.float() * torch.randn(out.shape)).sum().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def neighbours_do_not_matter(trial: Trial) -> str:
    """Several inputs in one call give what each gives alone."""
    module = trial.build()
    with torch.no_grad():
        alone = torch.cat([trial.run(module, [one]) for one in trial.inputs])
        together = trial.run(module, trial.inputs)
    difference = apart(together, alone)
    if difference > CLOSE:
        raise Fault(
            f"together, inputs give other rows than each alone, by {difference:.1e} of the largest value; "
            "no statistics over the batch, no attention or convolution across items"
        )
    return f"differs by {difference:.0e}"


def order_only_permutes(trial: Trial) -> str:
    """Inputs the other way round give the same rows the other way round."""
    module = trial.build()
    with torch.no_grad():
        together = trial.run(module, trial.inputs)
        parts = together.split([len(trial.run(module, [one])) for one in trial.inputs])
        turned = trial.run(module, list(reversed(trial.inputs)))
    difference = apart(turned, torch.cat(parts[::-1]))
    if difference > CLOSE:
        raise Fault(f"rows do not come in the order of the inputs (they differ by {difference:.1e}); put them back")
    return f"differs by {difference:.0e}"


def gradients_reach_every_parameter(trial: Trial) -> str:
    """Every parameter gets a gradient that is not zero everywhere."""
    gradients = gradients_of(trial, trial.build(), trial.inputs)
    if not gradients:
        return "has no parameters"
    without = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    if without:
        raise Fault(f"no gradient for {_some(without)}; do not build what an option does not use")
    broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    if broken:
        raise Fault(f"the gradient of {_some(broken)} is not finite")
    return f"{len(gradients)} parameters"


def stand_in_adds_exactly_nothing(trial: Trial) -> str:
    """An empty slice of the stand-in's rows gives every parameter a gradient of exactly zero.

    This is what every batch without the modality does. The stand-in of an encoder is its `example()`.
    """
    module = trial.build()
    reached = {name for name, gradient in gradients_of(trial, module, trial.inputs).items() if gradient is not None}
    module.zero_grad()
    rows = trial.run(module, [trial.stand_in])
    if not rows.isfinite().all():
        raise Fault("the stand-in gives NaN or infinity")
    if not rows.requires_grad and reached:
        raise Fault("no gradient flows from the stand-in")
    if reached:
        rows[:0].sum().backward()
    after = {name: parameter.grad for name, parameter in module.named_parameters()}
    unreached = [name for name in sorted(reached) if after[name] is None]
    if unreached:
        raise Fault(
            f"the stand-in does not reach {_some(unreached)}; run it like any input, or ranks will wait in vain"
        )
    touched = [name for name, gradient in after.items() if gradient is not None and gradient.ne(0).any()]
    if touched:
        raise Fault(f"the stand-in gives {_some(touched)} a gradient that is not zero")
    return ""


def same_input_same_output(trial: Trial) -> str:
    """Twice the same, bitwise: in evaluation, and in training with torch's generator at the same place."""
    module = trial.build()
    for mode in (False, True):
        module.train(mode)
        with torch.no_grad():
            with seeded():
                first = trial.run(module, trial.inputs)
            with seeded():
                second = trial.run(module, trial.inputs)
        if not torch.equal(first, second):
            raise Fault(
                f"gives other rows the second time, in {'training' if mode else 'evaluation'} mode; "
                "draw random numbers from torch's generator alone, and keep no state between calls"
            )
    return ""


def blocks_run_as_often_whatever_the_input(trial: Trial) -> str:
    """Each block runs the same number of times for one input, for several and for the stand-in.

    Sharded, every run of a block is a meeting of all ranks: a rank that runs it once more waits for ever.
    """
    module = trial.build()
    found = list(blocks(module))
    batches = {"one input": trial.inputs[-1:], "several": trial.inputs, "the stand-in": [trial.stand_in]}
    counts: dict[str, list[int]] = {}
    for name, inputs in batches.items():
        calls = [0] * len(found)
        hooks = [block.register_forward_hook(_counting(calls, at)) for at, block in enumerate(found)]
        with torch.no_grad():
            trial.run(module, inputs)
        for hook in hooks:
            hook.remove()
        counts[name] = calls
    for (name, calls), (other, others) in pairwise(counts.items()):
        if calls != others:
            at = next(at for at, pair in enumerate(zip(calls, others, strict=True)) if pair[0] != pair[1])
            raise Fault(f"block {at} runs {calls[at]} times for {name}, {others[at]} times for {other}; batch them")
    return f"{len(found)} blocks"


def _counting(calls: list[int], at: int) -> Any:  # noqa: ANN401
    def count(*_: object) -> None:
        calls[at] += 1

    return count


def weights_in_bfloat16(trial: Trial) -> str:
    """With its parameters in bfloat16 it gives nearly the same, and finite gradients."""
    return _in_bf16(trial, lambda module: _cast(module), autocast=False)


def autocast_to_bfloat16(trial: Trial) -> str:
    """Under autocast to bfloat16 it gives nearly the same, and finite gradients."""
    return _in_bf16(trial, lambda module: module, autocast=True)


def _cast(module: nn.Module) -> nn.Module:
    # Parameters alone, as sharding with mixed precision does: buffers (positions, frequencies) keep their type.
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return module


def _in_bf16(trial: Trial, change: Any, autocast: bool) -> str:  # noqa: ANN401
    with torch.no_grad():
        expected = trial.run(trial.build(), trial.inputs)
    module = change(trial.build())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            found = trial.run(module, trial.inputs)
        gradients = gradients_of(trial, module, trial.inputs)
    norm = expected.float().norm().clamp(min=1e-6)
    apart(found, expected)  # shapes, and that all is finite
    difference = float((found.float() - expected.float()).norm() / norm)
    if difference > BF16:
        raise Fault(
            f"differs from float32 by {100 * difference:.0f} % of its norm; at most {100 * BF16:.0f} % is rounding"
        )
    broken = [name for name, gradient in gradients.items() if gradient is not None and not gradient.isfinite().all()]
    if broken:
        raise Fault(f"the gradient of {_some(broken)} is not finite")
    return f"differs from float32 by {100 * difference:.1f} %"


def meta_built_is_the_same(trial: Trial) -> str:
    """Built without memory for its parameters and then given them, it equals the one built as always, bitwise.

    That is under `parameters_on_meta`. It can be built on the meta device altogether too, as `omnikit check` does.
    """
    try:
        with torch.device("meta"):
            trial.module()
    except Exception as error:
        raise Fault(f"cannot be built on the meta device ({reason(error)}); compute no values from tensors") from error
    module = trial.build()
    with parameters_on_meta():
        empty = trial.build()
    real = [name for name, parameter in empty.named_parameters() if not parameter.is_meta]
    if real:
        raise Fault(f"{_some(real)} are not parameters that a module registered")
    buffers = dict(empty.named_buffers())
    lost = [name for name, buffer in buffers.items() if buffer.is_meta]
    if lost:
        raise Fault(f"buffer {_some(lost)} is computed from parameters, which have no values on the meta device")
    other = [name for name, buffer in module.named_buffers() if not torch.equal(buffer, buffers[name])]
    if other:
        raise Fault(f"buffer {_some(other)} has another value when parameters are on the meta device")
    fill(empty, module.state_dict())
    empty.eval()
    with torch.no_grad():
        if not torch.equal(trial.run(empty, trial.inputs), trial.run(module, trial.inputs)):
            raise Fault(
                "given the same parameters it computes other rows; keep no values outside parameters and buffers"
            )
    return ""


def state_dict_round_trip(trial: Trial) -> str:
    """Its state dict goes through a safetensors file into a module of another seed, which then gives the same.

    Parameters that are one tensor under two names are told by `tied()`, and only they.
    """
    module, other = trial.build(), trial.build(seed=1)
    tied = ties(module)
    shared = _shared(module)
    for name, origin in tied.items():
        if shared.get(name) != shared.get(origin) or name not in shared:
            raise Fault(f"tied() says that {name} is {origin}, but they are two tensors")
    untold = [names for names in _groups(shared) if len([name for name in names if name not in tied]) > 1]
    if untold:
        raise Fault(f"{' and '.join(untold[0])} are one tensor; tell it by tied()")
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items() if name not in tied}
    missing, unexpected = other.load_state_dict(load(save(tensors)), strict=False)
    if set(missing) - set(tied) or unexpected:
        raise Fault(f"its own state dict does not fit it: {_some([*missing, *unexpected])}")
    with torch.no_grad():
        if not torch.equal(trial.run(module, trial.inputs), trial.run(other, trial.inputs)):
            raise Fault(
                "with the same state dict it gives other rows; keep nothing that is learned or drawn outside it"
            )
    return f"{len(tensors)} tensors"


def _shared(module: nn.Module) -> dict[str, int]:
    return {name: id(parameter) for name, parameter in module.named_parameters(remove_duplicate=False)}


def _groups(shared: dict[str, int]) -> Iterable[list[str]]:
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in shared.items():
        by_tensor.setdefault(tensor, []).append(name)
    return by_tensor.values()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


MODULE_CHECKS = (
    neighbours_do_not_matter,
    order_only_permutes,
    gradients_reach_every_parameter,
    stand_in_adds_exactly_nothing,
    same_input_same_output,
    blocks_run_as_often_whatever_the_input,
    weights_in_bfloat16,
    autocast_to_bfloat16,
    meta_built_is_the_same,
    state_dict_round_trip,
)
"""What holds of the modules of all three kinds."""
