"""Recipes: read, merged, checked, and written back.

    recipe = load_recipe("recipes/tiny_omni.yaml", Registry.load(), sets=["run.seed=1"])

What is wrong is one RecipeError with a line for each thing: `file:line: path: what is wrong; what would be right`.
First YAML itself, then the schema, then what the parts say about each other; each pass reports all it finds.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from omnikit.recipe_changes import changes
from omnikit.recipe_checks import (
    built,
    check,
    frozen_encoders,
    modules,
    reach,
    recomputes,
    rule_for,
    trains_within,
    within,
)
from omnikit.recipe_json import json_schema
from omnikit.recipe_merge import apply_sets, read_recipe
from omnikit.recipe_schema import (
    Batch,
    Held,
    Modality,
    Recipe,
    Rule,
    Run,
    Schedule,
    Share,
    Stage,
    Train,
    below,
    fields,
)
from omnikit.registry import Registry, did_you_mean
from omnikit.strictyaml import Place, RecipeError, Table, write

__all__ = [
    "Batch",
    "Held",
    "Modality",
    "Recipe",
    "RecipeError",
    "Rule",
    "Run",
    "Schedule",
    "Share",
    "Stage",
    "Train",
    "built",
    "changes",
    "dump_recipe",
    "frozen_encoders",
    "json_schema",
    "load_recipe",
    "modules",
    "reach",
    "recomputes",
    "rule_for",
    "trains_within",
    "within",
]


def load_recipe(path: str | Path, registry: Registry, sets: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, with `path=value` replacements; a RecipeError says all that is wrong with it."""
    tree = read_recipe(path)
    apply_sets(tree, sets, registry)
    try:
        recipe = Recipe.model_validate(tree, context=registry)
    except ValidationError as error:
        raise RecipeError(_rendered(error, tree, str(path), registry)) from None
    found = [f"{_walk(tree, keys, str(path), registry)[0]}: {message}" for keys, message in check(recipe)]
    if found:
        raise RecipeError(found)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, with every default filled in and paths absolute; it loads to an equal recipe."""
    return write(recipe.model_dump(mode="json", by_alias=True))


# -------------------------------------------------------------------------------------------------------------- errors


def _rendered(error: ValidationError, tree: Table, file: str, registry: Registry) -> list[str]:
    lines: dict[str, list[str]] = {}  # a union's branches are one complaint
    for found in error.errors(include_url=False):
        where, known = _walk(tree, found["loc"], file, registry, is_missing=found["type"] == "missing")
        lines.setdefault(where, []).append(_said(found, known))
    return [f"{where}: {'; or '.join(dict.fromkeys(said))}" for where, said in lines.items()]


def _walk(
    tree: Table, loc: Iterable[int | str], file: str, registry: Registry, *, is_missing: bool = False
) -> tuple[str, list[str]]:
    """(`file:line: path` of what pydantic calls `loc`, the keys that are known beside the last one)."""
    node: Any = tree
    outer: Any = Recipe
    place, path, known = Place(file, 0), list[str](), list[str]()
    for part in loc:
        key = str(part)
        if isinstance(node, list) and isinstance(part, int) and part < len(node):
            node, outer, known = node[part], None, []
        elif isinstance(node, Table) and key in node:
            known = list(fields(outer))
            outer = below(outer, key, node[key], registry)
            place, node = node.places[key], node[key]
        elif key not in fields(outer) or not (isinstance(node, Table) or is_missing):
            continue  # the name of a union's branch, pydantic's [key], or the key that a bare value stands for
        path.append(key)
    return (f"{place}: {'.'.join(path)}" if path else str(place)), known


_IN_WORDS = {"dictionary": "a mapping", "list": "a list", "tuple": "a list"}
_TYPES = re.compile(r"a valid (dictionary|list|tuple)( or instance of \w+)?")


def _said(found: Any, known: list[str]) -> str:  # noqa: ANN401
    """What pydantic says, in our words."""
    value, message, kind = found["input"], str(found["msg"]), found["type"]
    message = message.removeprefix("Value error, ").replace("Input should", "should")
    message = _TYPES.sub(lambda match: _IN_WORDS[match[1]], message.split(", unable to")[0])
    match kind:
        case "recipe" | "value_error":
            return " ".join(message.split())
        case "missing":
            return f"is missing; add `{found['loc'][-1]}: ...`"
        case "extra_forbidden":
            key = str(found["loc"][-1])
            return f"is no known key{did_you_mean(key, known)}"
        case "too_short":
            return "is empty; it needs at least one entry"
        case "string_type" if isinstance(value, int | float):
            return f'{str(value).lower()} is a {type(value).__name__}; should be a string: write "{value}" in quotes'
    return f"{_shown(value)} does not fit; {message}"


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list | BaseModel):
        return "a list" if isinstance(value, list) else "a mapping"
    text = repr(str(value)) if isinstance(value, str) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."
