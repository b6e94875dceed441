"""Checks of what a Config says of its size: `tiny()` and `cost`."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from omnikit.building import parameters_on_meta
from omnikit.component import Component, EncoderConfig
from omnikit.testing.results import Fault
from omnikit.testing.trials import Trial

__all__ = ["COST_CHECKS", "MOST_PARAMETERS", "cost_matches_flops", "options_of", "tiny_is_tiny"]

MOST_PARAMETERS = 2_000_000
"""Of a tiny component."""
FACTOR = 2.0
"""By which `cost` may be off: it balances ranks, and need not know of norms and activations."""


def options_of(config: Component) -> dict[str, Any]:
    """The fields that choose what is built rather than how large: booleans and words, of which `preset` is none."""
    chosen = {name: getattr(config, name) for name in type(config).model_fields if name not in ("preset", "weights")}
    return {name: value for name, value in chosen.items() if isinstance(value, bool | str)}


def tiny_is_tiny(trial: Trial) -> str:
    """`tiny()` has at most two million parameters, the same options, and costs no more."""
    tiny = trial.config.tiny()
    if type(tiny) is not type(trial.config):
        raise Fault(f"tiny() gives a {type(tiny).__name__}")
    changed = [name for name, value in options_of(trial.config).items() if getattr(tiny, name) != value]
    if changed:
        raise Fault(f"tiny() changes the option {', '.join(changed)}; change sizes alone")
    small = trial.with_config(tiny)
    with parameters_on_meta():
        size = sum(parameter.numel() for parameter in small.build().parameters())
    if size > MOST_PARAMETERS:
        raise Fault(f"tiny() has {size:,} parameters; at most {MOST_PARAMETERS:,} are tiny")
    before, after = (
        one.cost(one.config.example() if isinstance(one.config, EncoderConfig) else one.stand_in)
        for one in (trial, small)
    )
    if after > before:
        raise Fault(f"tiny() costs {after:.2e} FLOPs for what costs {before:.2e} before; give it smaller sizes")
    return f"{size:,} parameters"


def cost_matches_flops(trial: Trial) -> str:
    """`cost` is within a factor of two of the FLOPs that torch counts in the forward pass of each input.

    So it is with each whole number of the Config four times as large: a tiny module of one layer would not show that
    its layers are not counted.
    """
    worst = _worst(trial, trial.inputs, "")
    for name, larger in _larger(trial):
        worst = max(worst, _worst(larger, larger.inputs[-1:], f" with {name} {getattr(larger.config, name)}"))
    return f"within a factor of {worst:.2f}"


def _worst(trial: Trial, inputs: Sequence[Any], where: str) -> float:
    module, worst = trial.build(), 1.0
    for one in inputs:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_on_cpu()) as counter:
            trial.run(module, [one])
        said, counted = trial.cost(one), counter.get_total_flops()
        if counted == 0 and said == 0:
            continue
        ratio = said / counted if counted else float("inf")
        if not 1 / FACTOR <= ratio <= FACTOR:
            raise Fault(
                f"cost says {said:.3g} FLOPs for {trial.name(one)}{where}, torch counts {counted:.3g}; "
                "count two for each multiply-add of every matrix product"
            )
        worst = max(worst, ratio, 1 / ratio)
    return worst


def _larger(trial: Trial) -> Iterator[tuple[str, Trial]]:
    """(field, the trial with that field four times as large), where such a module can be built and run."""
    fields = {name: value for name, value in trial.config.model_dump().items() if name != "type"}
    for name, value in fields.items():
        if isinstance(value, int) and not isinstance(value, bool):
            try:
                larger = trial.remade(type(trial.config).model_validate({**fields, name: 4 * value}))
                with parameters_on_meta():
                    size = sum(parameter.numel() for parameter in larger.build().parameters())
                if size > 20 * MOST_PARAMETERS:
                    continue
                with torch.no_grad():
                    larger.run(larger.build(), larger.inputs[-1:])
            except (Exception, SystemExit):  # it does not go with the others as they are
                continue
            yield name, larger


def _on_cpu() -> dict[Any, Any]:
    # torch counts the attention kernels of GPUs; the CPU's has the same first three arguments, and no entry.
    def attention(query: Any, key: Any, value: Any, *_: object, out_shape: object = None, **__: object) -> int:  # noqa: ANN401
        return sdpa_flop_count(query, key, value)

    return {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}


COST_CHECKS = (tiny_is_tiny, cost_matches_flops)
