"""`omnikit plugins` and `omnikit env`."""

import json
from typing import TYPE_CHECKING

from omnikit.cli.options import JsonOption

if TYPE_CHECKING:
    from omnikit.registry import Plugin


def plugins(as_json: JsonOption = False) -> None:
    """List the plugins and the components they bring.

    A broken plugin is listed with its reason. The names are those that recipes use, as in `projector: mlp`.
    """
    from omnikit.registry import Registry

    registry = Registry.load()
    if as_json:
        found = [
            {
                "name": plugin.name,
                "package": plugin.distribution,
                "version": plugin.version,
                "components": _by_kind(plugin),
                "broken": plugin.broken,
            }
            for plugin in registry.plugins
        ]
        print(json.dumps({"plugins": found, "clashes": list(registry.clashes)}, indent=1))
        return
    for plugin in registry.plugins:
        print(f"{plugin.name}  ({plugin.distribution} {plugin.version})")
        for kind, types in _by_kind(plugin).items():
            print(f"  {kind}: {', '.join(types)}")
        if plugin.broken:
            print(f"  BROKEN: {plugin.broken}")
    for clash in registry.clashes:
        print(f"CLASH: {clash}")


def _by_kind(plugin: "Plugin") -> dict[str, list[str]]:
    kinds = sorted({str(component.kind) for component in plugin.components})
    return {kind: sorted(one.type for one in plugin.components if one.kind == kind) for kind in kinds}


def env(as_json: JsonOption = False) -> None:
    """Print versions and the machine, for bug reports."""
    from omnikit.versions import environment

    found = environment()
    print(json.dumps(found, indent=1) if as_json else "\n".join(f"{key}: {value}" for key, value in found.items()))
