"""What of a recipe has changed since a run was begun with it, but for what may change."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omnikit.recipe_schema import Recipe

__all__ = ["changes"]

ORDER = "[order]"
MAY_CHANGE = frozenset(
    {
        *("run.save", "run.keep", "run.log", "run.workers", "run.shard", "run.on_nonfinite", "run.hang"),
        *("run.tracker", "run.eval", "run.forgetting"),
        *("limits.read_seconds", "limits.memory_bytes"),
    }
)
"""Paths of a recipe that may differ when a run goes on: they change nothing that is computed."""


def changes(before: Mapping[str, Any], after: Recipe) -> Iterator[tuple[str, object, object]]:
    """Path, value before and value now of what differs between the file of a run's recipe and a recipe."""
    for key, old, new in _differences(_flat(before), _flat(_plain(after))):
        if key not in MAY_CHANGE and not re.fullmatch(r"data\.\w+\.max_bad", key):
            yield key, old, new


def _plain(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", by_alias=True)


def _flat(node: object, path: str = "") -> dict[str, object]:
    """The leaves of nested mappings by dotted path, and the order of each: stages, rules, sources, tokens follow it."""
    if not isinstance(node, Mapping):
        return {path: node}
    leaves: dict[str, object] = {path + ORDER: list(node)}
    for key, value in node.items():
        leaves |= _flat(value, f"{path}.{key}" if path else str(key))
    return leaves


def _differences(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[tuple[str, object, object]]:
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) == after.get(key):
            continue
        # Another order of other keys is told by these keys.
        if not key.endswith(ORDER) or _same(before.get(key), after.get(key)):
            yield key, before.get(key, "nothing"), after.get(key, "nothing")


def _same(before: object, after: object) -> bool:
    return isinstance(before, list) and isinstance(after, list) and set(before) == set(after)
