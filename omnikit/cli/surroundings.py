"""`omnikit plugins` and `omnikit env`."""

import json

from omnikit.cli.options import JsonOption


def plugins(as_json: JsonOption = False) -> None:
    """List what is installed: every plugin, the components it brings, and why a broken one is broken."""
    from omnikit.registry import Registry

    found = [
        {
            "name": plugin.name,
            "package": plugin.distribution,
            "version": plugin.version,
            "components": {
                kind: sorted(component.type for component in plugin.components if component.kind == kind)
                for kind in sorted({component.kind for component in plugin.components})
            },
            "broken": plugin.broken,
        }
        for plugin in Registry.load().plugins
    ]
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for plugin in found:
        print(f"{plugin['name']}  ({plugin['package']} {plugin['version']})")
        for kind, types in plugin["components"].items():
            print(f"  {kind}: {', '.join(types)}")
        if plugin["broken"]:
            print(f"  BROKEN: {plugin['broken']}")


def env(as_json: JsonOption = False) -> None:
    """Print versions and the machine, for bug reports."""
    from omnikit.versions import environment

    found = environment()
    print(json.dumps(found, indent=1) if as_json else "\n".join(f"{key}: {value}" for key, value in found.items()))
