"""`omnikit env`."""

import json

from omnikit.cli.options import JsonOption


def env(as_json: JsonOption = False) -> None:
    """Print versions and the machine, for bug reports."""
    from omnikit.versions import environment

    found = environment()
    print(json.dumps(found, indent=1) if as_json else "\n".join(f"{key}: {value}" for key, value in found.items()))
