"""A stage's model and optimizer, from its rules.

A rule is a dotted prefix of a parameter name and a rate, or the word `frozen`; the first that matches wins. Every
parameter needs a rule, and every rule must match something: a stage that silently trains nothing, or trains what was
meant to be frozen, costs a week of GPUs.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed._composable import checkpoint
from torch.overrides import TorchFunctionMode

from omnikit.building import ties
from omnikit.component import BackboneConfig, EncoderConfig
from omnikit.mixing import seed_of
from omnikit.model import OmniModel
from omnikit.protocols import blocks
from omnikit.recipe import Recipe, Rule, Schedule, modules, rule_for, within

BETAS = (0.9, 0.95)
"""AdamW's, as most language models are trained; the paper does not give its own."""
DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"})
"""Functions that fill a tensor with random numbers: torch's own, or wrapped under the same name by transformers."""


class Matched(NamedTuple):
    """The rule that a parameter is under: its path in the recipe, and the rule (None when frozen)."""

    path: str
    rule: Rule | None


def rules_by_parameter(names: Iterable[str], recipe: Recipe, stage_name: str) -> dict[str, Matched]:
    """The rule of every parameter of a stage's model, by the parameters' names.

    A parameter without a rule, and a rule that no parameter is under, are errors, all listed at once.
    """
    stage, names = recipe.stages[stage_name], list(names)
    found: dict[str, Matched] = {}
    faults: list[str] = []
    uncovered: list[str] = []
    for name in names:
        matched = rule_for(name, stage.train)
        if matched is None:
            uncovered.append(name)
        else:
            path, rule = matched
            found[name] = Matched(path, None if rule == "frozen" else rule)
    where = f"stages.{stage_name}.train"
    if uncovered:
        faults.append(
            f"{where}: no rule for {len(uncovered)} parameters, such as {uncovered[0]}; add a rule, or `rest: frozen`"
        )
    used = {matched.path for matched in found.values()}
    absent = [path for path in modules(recipe) if not any(within(name, path) for name in names)]
    for path in stage.train:
        # A rule may speak of a component that this stage does not build: nothing of it can train.
        elsewhere = any(within(path, component) or within(component, path) for component in absent)
        if path not in used and path != "rest" and not elsewhere:
            faults.append(
                f"{where}.{path}: matches no parameter that earlier rules left; see `omnikit check` for names"
            )
    if faults:
        raise ExceptionGroup("rules", [ValueError(fault) for fault in faults])
    return found


def apply_rules(model: OmniModel, rules: dict[str, Matched]) -> None:
    """Freeze and thaw parameters. A component with nothing to train is in evaluation mode: its dropout is off."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rules[name].rule is not None)
    for component in components(model).values():
        component.train(any(parameter.requires_grad for parameter in component.parameters()))


def components(model: OmniModel) -> dict[str, nn.Module]:
    """The model's components by recipe path."""
    found: dict[str, nn.Module] = {"backbone": model.backbone}
    found |= {f"encoders.{name}": module for name, module in model.encoders.items()}
    found |= {f"modalities.{name}.projector": branch["projector"] for name, branch in model.modalities.items()}
    return found


def optimizer_of(model: nn.Module, rules: dict[str, Matched]) -> torch.optim.AdamW:
    """AdamW over the trained parameters only, a group per rule (and per whether it decays: vectors never do)."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((rules[name].path, parameter.ndim >= 2), []).append(parameter)
    by_path = {matched.path: matched.rule for matched in rules.values() if matched.rule is not None}
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": by_path[path].lr,
                "peak": by_path[path].lr,
                "weight_decay": by_path[path].weight_decay if decays else 0.0,
            }
            for (path, decays), parameters in groups.items()
        ],
        betas=BETAS,
        fused=True,
    )


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the peak rate is multiplied by at step 1..steps: linear warm-up, then the shape down towards `floor`.

    `floor` would be reached one step after the last: every step trains, also where there is but one.
    """
    warmup = round(schedule.warmup * steps)
    if step <= warmup:
        return step / warmup
    done = (step - 1 - warmup) / (steps - warmup)
    if schedule.shape == "constant":
        return 1.0
    shape = 0.5 * (1 + math.cos(math.pi * done)) if schedule.shape == "cosine" else 1.0 - done
    return schedule.floor + (1 - schedule.floor) * shape


def build(recipe: Recipe, modalities: frozenset[str], fill: bool = True) -> OmniModel:
    """The model at its very start: random from the seed, then the weights that the recipe names.

    Unless `fill`, its parameters are as their memory was.
    """
    configs: dict[str, BackboneConfig | EncoderConfig] = {"backbone": recipe.backbone}
    configs |= {f"encoders.{name}": config for name, config in recipe.encoders.items()}
    loaded = {path: config for path, config in configs.items() if config.weights is not None}

    @contextlib.contextmanager
    def seeded(path: str) -> Iterator[None]:
        # Weights to come overwrite what is drawn, and drawing 7 B parameters takes a minute.
        with _seeded(recipe.run.seed, path), _Undrawn() if path in loaded or not fill else contextlib.nullcontext():
            yield

    model = OmniModel(recipe, modalities, seeded=seeded)
    for path, module in components(model).items():
        if path in loaded and fill:
            _load_pretrained(path, module, loaded[path])
    return model


class _Undrawn(TorchFunctionMode):
    """Leaves parameters as their memory was, where they would be drawn from a distribution."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        drawn = args[0] if args else kwargs.get("tensor")
        # Parameters alone: a buffer may be drawn too, and stand in no file.
        is_drawing = getattr(func, "__name__", "") in DRAWS and isinstance(drawn, nn.Parameter)
        return drawn if is_drawing else func(*args, **kwargs)


@contextlib.contextmanager
def _seeded(seed: int, path: str) -> Iterator[None]:
    """Each component draws from its own seed, so that what else is built changes nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, path))
        yield


def _load_pretrained(path: str, module: nn.Module, config: BackboneConfig | EncoderConfig) -> None:
    """Fill the module with its weights: all of its tensors, and no others."""
    if type(config).pretrained in (BackboneConfig.pretrained, EncoderConfig.pretrained):
        raise ValueError(f"{path}.weights: type {config.type} loads no weights; remove it")
    target = module.state_dict()
    tied = ties(module)
    missing = set(target) - set(tied)
    shared: dict[str, Tensor] = {}
    extra: list[str] = []
    misshaped: dict[str, torch.Size] = {}
    try:
        for name, tensor in config.pretrained():
            missing.discard(name)
            if name not in target:
                extra.append(name)
            elif target[name].shape != tensor.shape:
                misshaped[name] = tensor.shape
            elif name in tied:
                shared[name] = tensor
            else:
                with torch.no_grad():
                    target[name].copy_(tensor)
    except SafetensorError as error:
        raise ValueError(f"{path}.weights: {config.weights} holds a broken .safetensors file ({error})") from error
    except ValueError as error:
        # One that begins with the name of a field says where in the component; here stands which component.
        is_of_field = str(error).partition(":")[0] in type(config).model_fields
        raise ValueError(f"{path}.{error}" if is_of_field else str(error)) from error
    faults = [f"lacks {len(missing)} tensors, such as {_first(sorted(missing))}"] if missing else []
    faults += [f"holds {_first(extra)}, which the model has not ({len(extra)} tensors)"] if extra else []
    for name in list(misshaped)[:1]:
        theirs, ours = tuple(misshaped[name]), tuple(target[name].shape)
        rest = f" ({len(misshaped)} tensors differ: {_first(misshaped)})" if len(misshaped) > 1 else ""
        faults.append(f"{name} is {theirs} in {config.weights} and {ours} in the recipe{rest}")
    if faults:
        raise ValueError(f"{path}.weights: {config.weights} {'; '.join(faults)}; check preset")
    for name, tensor in shared.items():
        if not torch.equal(tensor.to(target[name].dtype), target[name]):
            raise ValueError(
                f"{path}.weights: {name} is not {tied[name]} in {config.weights}, but the recipe ties them; "
                "set tie_word_embeddings: false in its config"
            )


def _first(names: Iterable[str], number: int = 3) -> str:
    """The first few of the names."""
    names = list(names)
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "")


def initialise(model: OmniModel, init: dict[str, str], stage_name: str) -> list[str]:
    """Copy tensors between components, by name, as the stage's `init` says; the target's tensors that kept their own.

    A source tensor with no equal-shaped target is an error.
    """
    kept: list[str] = []
    modules = components(model)
    for target_path, source_path in init.items():
        if target_path not in modules:
            raise ValueError(
                f"stages.{stage_name}.init.{target_path}: no sample of the stage reaches it, so it is not built here; "
                "move this to the first stage that has data for it"
            )
        source, target = (modules[path].state_dict() for path in (source_path, target_path))
        for name, tensor in source.items():
            if name not in target or target[name].shape != tensor.shape:
                raise ValueError(
                    f"stages.{stage_name}.init.{target_path}: has no {name} of shape {tuple(tensor.shape)}, which "
                    f"{source_path} has; choose projectors that share their tensors"
                )
            with torch.no_grad():
                target[name].copy_(tensor)
        kept.extend(f"{target_path}.{name}" for name in target if name not in source)
    return kept


def units_of(model: OmniModel) -> list[nn.Module]:
    """The blocks of all components: what is recomputed, compiled and sharded for itself."""
    return [block for component in components(model).values() for block in blocks(component)]


def recompute(units: Iterable[nn.Module]) -> None:
    """Recompute the activations of these blocks in the backward pass, wherever gradients pass through them.

    Not tied to training mode: through a frozen backbone in evaluation mode gradients still flow to a projector, and
    that is where activations cost most.
    """
    for unit in units:
        checkpoint(unit)


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that a rule gave a rate, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
