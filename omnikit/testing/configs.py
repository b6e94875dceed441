"""Checks of every Config, whatever its kind, and how one is made anew from its dump."""

import json
import sys
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from omnikit.component import Component
from omnikit.testing.processes import clean_helper
from omnikit.testing.results import Fault

__all__ = ["comes_back_from_json", "dumped", "imports_without_torch", "loaded"]


class HasConfig(Protocol):
    """What a check is of: at least a Config."""

    @property
    def config(self) -> Component: ...


class Dump(NamedTuple):
    """A Config as text: where its class is to be imported from, and its fields in JSON."""

    module: str
    name: str
    fields: str


def dumped(config: Component) -> Dump:
    """The Config as recipes are stored: its dump in JSON."""
    return Dump(type(config).__module__, type(config).__qualname__, json.dumps(config.model_dump(mode="json")))


def loaded(dump: Dump) -> Component:
    """The Config of a dump, as a recipe makes it: `type` chooses the class, the rest are fields."""
    found: Any = import_module(dump.module)
    for name in dump.name.split("."):
        found = getattr(found, name)
    fields = json.loads(dump.fields)
    if fields.pop("type", None) != found.type:
        raise Fault(f"its dump has no `type: {found.type}`; do not override the serializer of Component")
    config = found.model_validate(fields)
    assert isinstance(config, Component)
    return config


def comes_back_from_json(subject: HasConfig) -> str:
    """load(dump(c)) == c, of the same class: a resolved recipe reloads to the same thing."""
    config = subject.config
    again = loaded(dumped(config))
    if type(again) is not type(config) or again != config:
        fields = type(config).model_fields
        changed = [name for name in fields if getattr(config, name) != getattr(again, name, None)] or ["its class"]
        raise Fault(f"load(dump(config)) is another Config: {', '.join(changed)} changed on the way")
    return ""


def imports_without_torch(subject: HasConfig) -> str:
    """A fresh Python imports the Config's module, makes the Config and dumps it, and has not imported torch."""
    helper = clean_helper()
    if helper.call(imported_torch, dumped(subject.config)):
        helper.close()  # that one is spent
        raise Fault("importing the module or making the Config imports torch; import it in build() and read()")
    return ""


def imported_torch(dump: Dump) -> bool:
    """In a helper: whether making this Config has imported torch."""
    dumped(loaded(dump))
    return "torch" in sys.modules
