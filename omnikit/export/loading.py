"""An exported folder as omnikit's own model. Of its code nothing is run: the components are those installed here."""

from pathlib import Path

import torch

from omnikit.checkpoint import flat_tensors
from omnikit.model import OmniModel
from omnikit.recipe import Recipe, load_recipe
from omnikit.registry import Registry
from omnikit.stages import build
from omnikit.weights import tensors_in


def is_export(folder: Path) -> bool:
    """Whether this is a folder that `omnikit export` wrote."""
    return (folder / "recipe.yaml").is_file() and (folder / "processor_config.json").is_file()


def load(folder: Path, registry: Registry) -> tuple[Recipe, OmniModel]:
    """The recipe and the model, in float32, of a folder that `omnikit export` wrote.

    A file that is missing or broken, and a tensor that the recipe's model has not or has in another shape, are
    ValueErrors.
    """
    recipe = load_recipe(folder / "recipe.yaml", registry)
    model = build(recipe, frozenset(recipe.modalities), fill=False)
    missing = flat_tensors(model)[0]
    for name, tensor in tensors_in(str(folder)):
        target = missing.pop(name, None)
        if target is None or target.shape != tensor.shape:
            what = "the recipe's model has no such tensor" if target is None else f"there it is {tuple(target.shape)}"
            raise ValueError(f"{folder}: holds {name} {tuple(tensor.shape)}, and {what}; export the run again")
        with torch.no_grad():
            target.copy_(tensor)
    if missing:
        raise ValueError(f"{folder}: lacks {len(missing)} tensors, such as {min(missing)}; export the run again")
    return recipe, model
