"""The components that are installed: built in, and from packages that register under the entry-point group `omnikit`.

A plugin is a package whose one hook returns Config classes. The registry is a value that is loaded and passed on;
nothing is registered by importing. pluggy's own loader drops the second of two packages with one name without a word,
and one broken plugin would end every command, so the entry points are walked here and what is wrong is recorded.
"""

import builtins
import difflib
import importlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

import pluggy

import omnikit
from omnikit.component import (
    BackboneConfig,
    BenchmarkConfig,
    Component,
    EncoderConfig,
    Input,
    ProjectorConfig,
    ReaderConfig,
    SourceConfig,
    hookspec,
)

__all__ = ["KINDS", "NAME", "Plugin", "Registry", "did_you_mean", "omnikit_components"]

KINDS: dict[str, type[Component]] = {
    "reader": ReaderConfig,
    "encoder": EncoderConfig,
    "projector": ProjectorConfig,
    "backbone": BackboneConfig,
    "source": SourceConfig,
    "benchmark": BenchmarkConfig,
}
"""The kinds of component and the class that each must derive from."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""What a name looks like in a recipe: of a type, an encoder, a modality, a source, a stage."""


@hookspec
def omnikit_components() -> Sequence[type[Component]]:  # type: ignore[empty-body]
    """The Config classes that a plugin brings: concrete subclasses of the six kinds, each with its own `type`."""


class Plugin(NamedTuple):
    """A package that registers components, or that tried to: `broken` is the reason, in one line."""

    name: str
    distribution: str
    version: str
    components: tuple[type[Component], ...] = ()
    broken: str | None = None

    def __str__(self) -> str:
        return f"{self.name} (package {self.distribution} {self.version})"


@dataclass(frozen=True)
class Registry:
    """What is installed. `Registry.load()` finds it; `Registry.of(...)` is a registry of just these classes."""

    plugins: tuple[Plugin, ...]

    @classmethod
    def load(cls) -> "Registry":
        """The built-in components and those of every installed plugin; a broken plugin is recorded, not raised."""
        found = [_load(EntryPoint("builtin", "omnikit.builtin", "omnikit"), "omnikit", omnikit.__version__)]
        entries = sorted(entry_points(group="omnikit"), key=lambda entry: (entry.name, _owner(entry)))
        for entry in entries:
            owners = [_owner(other) for other in entries if other.name == entry.name]
            distribution, version = _owner(entry)
            if entry.name == "builtin":
                reason = f"the plugin name 'builtin' is omnikit's own; {distribution} must register under another"
            elif len(owners) > 1:
                packages = " and ".join(" ".join(owner) for owner in owners)
                reason = f"two packages register the plugin name {entry.name!r}: {packages}; uninstall one"
            else:
                found.append(_load(entry, distribution, version))
                continue
            found.append(Plugin(entry.name, distribution, version, broken=reason))
        return cls(tuple(found))

    @classmethod
    def of(cls, *components: type[Component]) -> "Registry":
        """A registry of exactly these components."""
        return cls((Plugin("given", "given", "0", _checked(components)),))

    def types(self, kind: str) -> tuple[str, ...]:
        """The types of this kind that a recipe can name, sorted."""
        counts = Counter(found.type for plugin in self.plugins for found in plugin.components if found.kind == kind)
        return tuple(sorted(type for type, count in counts.items() if count == 1))

    def get(self, kind: str, type: str) -> type[Component]:
        """The Config class of this kind and type; a ValueError says what there is instead."""
        found = self._found(kind, type)
        if not found:
            raise ValueError(self._unknown(kind, type))
        if len(found) > 1:
            raise ValueError(_clash(kind, type, [plugin for plugin, _ in found]))
        return found[0][1]

    @property
    def clashes(self) -> tuple[str, ...]:
        """The names that two plugins bring, a line each: neither of the two can be used."""
        names = dict.fromkeys((found.kind, found.type) for plugin in self.plugins for found in plugin.components)
        owners = {name: [plugin for plugin, _ in self._found(*name)] for name in names}
        return tuple(_clash(*name, plugins) for name, plugins in owners.items() if len(plugins) > 1)

    def _found(self, kind: str, type: str) -> list[tuple[Plugin, builtins.type[Component]]]:
        return [
            (plugin, component)
            for plugin in self.plugins
            for component in plugin.components
            if (component.kind, component.type) == (kind, type)
        ]

    def _unknown(self, kind: str, type: str) -> str:
        known = self.types(kind)
        others = [other for other in KINDS if other != kind and type in self.types(other)]
        text = f"no {kind} is called {_short(type)}"
        if others:
            text += f" (it is the name of a component of kind {others[0]})"
        elif not NAME.fullmatch(type):
            text += " (recipes name registered components, never import paths)"
        text += did_you_mean(type, known)
        broken = [f"{plugin.name}: {plugin.broken}" for plugin in self.plugins if plugin.broken]
        return text + (f"; broken plugins, which may bring it: {' | '.join(broken)}" if broken else "")


def did_you_mean(word: str, known: Iterable[str], label: str = "known") -> str:
    """The end of an error about an unknown word: '; did you mean `nearest`? known: all of them'."""
    known = list(dict.fromkeys(known))
    # Both are cut: difflib is quadratic, and a recipe from a stranger may hold a key of 100,000 letters.
    nearest = difflib.get_close_matches(word[:80], [name for name in known if len(name) <= 160], n=1)
    question = f" did you mean `{nearest[0]}`?" if nearest else ""
    return f";{question} {label}: {', '.join(known[:40]) or 'none'}{', ...' if len(known) > 40 else ''}"


def _clash(kind: str, type: str, plugins: list[Plugin]) -> str:
    return f"two plugins bring the {kind} {type!r}: {' and '.join(map(str, plugins))}; uninstall one"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _owner(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "")


def _load(entry: EntryPoint, distribution: str, version: str) -> Plugin:
    try:
        plugin = importlib.import_module(entry.module) if not entry.attr else entry.load()
        components = _checked(_ask(plugin, entry.name))
    except (Exception, SystemExit) as error:  # one bad plugin must not end every command
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Plugin(entry.name, distribution, version, broken=reason)
    return Plugin(entry.name, distribution, version, components)


def _ask(plugin: object, name: str) -> list[object]:
    # A manager of its own per plugin: one plugin's misspelt hook is no other plugin's problem.
    manager = pluggy.PluginManager("omnikit")
    manager.add_hookspecs(sys.modules[__name__])
    manager.register(plugin, name)
    manager.check_pending()
    answers = manager.hook.omnikit_components()
    if not answers:
        raise ValueError("no hook: it must define `omnikit_components`, marked with @hookimpl of omnikit.component")
    return [component for answer in answers for component in answer]


def _checked(components: Iterable[object]) -> tuple[type[Component], ...]:
    checked: list[type[Component]] = []
    for component in components:
        if not isinstance(component, type) or not issubclass(component, tuple(KINDS.values())):
            raise ValueError(f"{component!r} is no subclass of {', '.join(base.__name__ for base in KINDS.values())}")
        assert issubclass(component, Component)
        name = getattr(component, "type", None)
        if component in KINDS.values() or not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"{component.__qualname__}.type is {name!r}; it must be a word like 'conv_gmlp'")
        if issubclass(component, ReaderConfig) and not _is_input(getattr(component, "makes", None)):
            raise ValueError(f"{component.__qualname__}.makes must be the Input class that it makes")
        if any((other.kind, other.type) == (component.kind, name) for other in checked):
            raise ValueError(f"it brings two components of kind {component.kind} and type {name!r}")
        checked.append(component)
    return tuple(checked)


def _is_input(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Input)
