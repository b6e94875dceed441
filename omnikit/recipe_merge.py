"""Which mapping a recipe file stands for: what it `extends` merged in, and what `--set` replaces.

Merging is key by key. Whole are replaced: a component by one of another type, and a stage's `train`, `data` and
`init`, whose order or sum means something. `null` removes a key.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from omnikit.component import Component
from omnikit.recipe_schema import Recipe, Rule, below, fields
from omnikit.registry import Registry, did_you_mean
from omnikit.strictyaml import Place, RecipeError, Table, read_file, read_text

__all__ = ["apply_sets", "read_recipe"]

MAX_CHAIN = 8


def read_recipe(path: str | Path, chain: tuple[str, ...] = ()) -> Table:
    """The mapping of a recipe file, with the files that it extends merged in."""
    name = str(path)
    tree = read_file(name)
    if "extends" not in tree:
        return tree
    parent, place = tree.pop("extends"), tree.places["extends"]
    if not isinstance(parent, str) or not parent:
        raise RecipeError([f"{place}: extends: needs the path of one recipe file"])
    base_name = os.path.normpath(os.path.join(os.path.dirname(name), parent))
    chain = (*chain, name)
    if os.path.realpath(base_name) in [os.path.realpath(other) for other in chain]:
        raise RecipeError([f"{place}: extends: a loop: {' -> '.join((*chain, base_name))}; remove one `extends`"])
    if len(chain) > MAX_CHAIN:
        raise RecipeError([f"{place}: extends: more than {MAX_CHAIN} files deep; extend a file further down"])
    if not os.path.isfile(base_name):
        raise RecipeError([f"{place}: extends: no file {base_name[:200]}; the path starts from this file's folder"])
    base = read_recipe(base_name, chain)
    orders = _take_orders(tree, base)
    merged = _merge(base, tree, ())
    if orders:
        merged["stages"] = _ordered(merged["stages"], orders)
    return merged


def _merge(base: Table, over: Table, at: tuple[str, ...]) -> Table:
    result = Table(base, base.places)
    for key, value in over.items():
        old = base.get(key)
        if value is None and key in base:
            del result[key]
            continue
        if isinstance(old, str) and isinstance(value, Table) and "type" not in value:
            old = Table({"type": old}, {"type": base.places[key]})
        if isinstance(old, Table) and isinstance(value, Table) and not _replaces(old, value, (*at, key)):
            value = _merge(old, value, (*at, key))
        result.put(key, value, over.places[key])
    return result


def _replaces(old: Table, new: Table, at: tuple[str, ...]) -> bool:
    whole = len(at) == 3 and at[0] == "stages" and at[2] in ("train", "data", "init")
    return whole or ("type" in new and new["type"] != old.get("type"))


def _take_orders(tree: Table, base: Table) -> list[tuple[str, str, Place]]:
    """Remove and return the `before` of the stages that are new in `tree`: (stage, before which, place)."""
    stages, old = tree.get("stages"), base.get("stages")
    if not isinstance(stages, Table) or not isinstance(old, Table):
        return []
    orders = []
    for name, stage in stages.items():
        if isinstance(stage, Table) and "before" in stage:
            place = stage.places["before"]
            if name in old:
                text = f"{name!r} is no new stage, and keeps its place; remove `before`"
                raise RecipeError([f"{place}: stages.{name}.before: {text}"])
            orders.append((name, str(stage.pop("before")), place))
    return orders


def _ordered(stages: Table, orders: list[tuple[str, str, Place]]) -> Table:
    names = list(stages)
    for name, before, place in orders:
        names.remove(name)
        if before not in names:
            text = f"no stage is called {before[:60]!r}{did_you_mean(before, names, 'stages')}"
            raise RecipeError([f"{place}: stages.{name}.before: {text}"])
        names.insert(names.index(before), name)
    return Table({name: stages[name] for name in names}, stages.places)


# --------------------------------------------------------------------------------------------------------------- --set


def apply_sets(tree: Table, sets: Iterable[str], registry: Registry) -> None:
    """Replace nodes of the tree, each as `path=value` says, in their order."""
    wrong: list[str] = []
    for text in sets:
        place = Place(f"--set {text if len(text) <= 80 else text[:77] + '...'}", 0)
        path, equals, written = text.partition("=")
        try:
            if not equals or not path.strip() or not written.strip():
                raise RecipeError([f"{place}: is not path=value; write one, such as run.seed=1 (null removes)"])
            value = read_text(written, place.file, Path.cwd(), lines=False)
            _set(tree, path.strip(), value, place, registry)
        except RecipeError as error:
            wrong.extend(error.messages)
    if wrong:
        raise RecipeError(wrong)


def _set(tree: Table, path: str, value: Any, place: Place, registry: Registry) -> None:  # noqa: ANN401
    """Follow the longest existing key, again and again, and replace what is there."""
    node, parts = tree, path.split(".")
    outer: Any = Recipe
    at: tuple[str, ...] = ()
    while True:
        if _keys_are_paths(at):
            parts = _whole_or_setting(node, parts)
        joined = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        key = next((key for key in joined if key in node), joined[-1])
        parts = parts[len(parts) - joined.index(key) :]
        if not parts:
            return _replace(node, key, value, place, outer, at)
        inner = below(outer, key, node.get(key), registry)
        node.put(key, _child(node, key, outer, inner, place), node.places.get(key, place))
        node, outer, at = node[key], inner, (*at, key)


def _keys_are_paths(at: tuple[str, ...]) -> bool:
    return len(at) == 3 and at[0] == "stages" and at[2] in ("train", "init")


def _whole_or_setting(rules: Table, parts: list[str]) -> list[str]:
    """One key of a `train` or `init`, as it holds dots; or an existing rule and one of its settings."""
    head = ".".join(parts[:-1])
    if ".".join(parts) not in rules and head in rules and parts[-1] in fields(Rule):
        return [head, parts[-1]]
    return [".".join(parts)]


def _child(node: Table, key: str, outer: Any, inner: Any, place: Place) -> Table:  # noqa: ANN401
    """The mapping at `key`, made where the schema has one: of a bare value, or of nothing."""
    child = node.get(key)
    if isinstance(child, Table):
        return child
    if child is None and (key not in fields(outer) or inner is None):
        raise RecipeError([f"{place}: no `{key[:60]}` here{_instead(node, key, outer)}"])
    short = _shorthand(inner)
    if child is None:
        return Table()
    if short is None or isinstance(child, list):
        raise RecipeError([f"{place}: `{key[:60]}` has nothing below it; set it whole"])
    return Table({short: child}, {short: node.places[key]})


def _shorthand(inner: Any) -> str | None:  # noqa: ANN401
    if not isinstance(inner, type) or not issubclass(inner, BaseModel):
        return None
    return "type" if issubclass(inner, Component) else getattr(inner, "shorthand", None)


def _replace(node: Table, key: str, value: Any, place: Place, outer: Any, at: tuple[str, ...]) -> None:  # noqa: ANN401
    if value is None and key not in node and key not in fields(outer):
        raise RecipeError([f"{place}: no `{key[:60]}` to remove{_instead(node, key, outer)}"])
    if value is None:
        node.pop(key, None)
        return
    is_new_rule = key not in node and _keys_are_paths(at)
    node.put(key, value, place)
    if is_new_rule:  # above the first rule that would hide it
        others = [other for other in node if other != key]
        hiding = (index for index, other in enumerate(others) if other == "rest" or key.startswith(other + "."))
        others.insert(next(hiding, len(others)), key)
        values = dict(node)
        node.clear()
        node.update((other, values[other]) for other in others)


def _instead(node: Table, key: str, outer: Any) -> str:  # noqa: ANN401
    return did_you_mean(key, [*node, *fields(outer)], "there is")
